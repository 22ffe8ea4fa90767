"""One sweep in a folder at a time, its training processes included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmkit.errors import VlmkitError


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder; gives the descriptor of the lock.

    The lock is of the open file and not of the process: a training process that inherits the descriptor
    holds it too, so that after a kill -9 of the sweep no second one trains the same run beside it.

    Raises:
        VlmkitError: Somebody holds it, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise VlmkitError("sweeps need Linux or macOS: this system has no flock") from None
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise VlmkitError(
            f"{folder}: another sweep, or a run that one has left behind, is at work here; wait for it, or "
            f"end it (started.jsonl has the process ids)"
        ) from None
    try:
        yield descriptor
    finally:
        # Only closed: unlocking would take it away from a process that has inherited it.
        os.close(descriptor)
