"""One sweep in a folder at a time, its training processes included."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmkit.errors import VlmkitError
from vlmkit_retrieval.errors import IndexLockedError
from vlmkit_retrieval.lock import FileLock


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder; gives the descriptor of the lock.

    A training process that inherits the descriptor holds the folder too, so that after a kill -9 of the sweep
    no second one trains the same run beside it.

    Raises:
        VlmkitError: Somebody holds it, or the system has no such locks.
    """
    if sys.platform == "win32":
        raise VlmkitError("sweeps need Linux or macOS: on this system a process cannot inherit a lock")
    try:
        lock = FileLock(folder / "lock", f"sweep {folder}")
    except IndexLockedError:
        # The process id in the file may be that of a sweep that was killed.
        raise VlmkitError(
            f"{folder}: another sweep, or a run that one has left behind, is at work here; wait for it, or "
            f"end it (started.jsonl has the process ids)"
        ) from None
    try:
        yield lock.fileno()
    finally:
        # Not released: that would take it away from a process that has inherited it.
        lock.close()
