"""Files that a power cut leaves whole: what is in them reaches the disk before their name does.

A rename is atomic for those who read, and not against a power cut: file systems may write the new name down
before the file's content, and the file is then empty or cut off. A synced file under a synced name is there.
Each call waits for the disk: milliseconds, beside what a checkpoint takes to write.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

# What systems say that cannot sync a folder.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Some network file systems do not know how to sync a folder: names are then as safe as these keep them.
    """
    if sys.platform == "win32" and path.is_dir():
        # Windows opens no folders, and writes their names down in order.
        return
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything below a folder is on the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def sync_those_there(*paths: Path) -> None:
    """Wait for files that need not be there."""
    for path in paths:
        if path.exists():
            sync(path)
