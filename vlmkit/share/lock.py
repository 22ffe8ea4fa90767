"""Wait for another process that does the same work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmkit_retrieval.errors import IndexLockedError
from vlmkit_retrieval.lock import FileLock

Tell = Callable[[str], None]


@contextmanager
def one_at_a_time(path: Path, what: str, tell: Tell | None = None, every: float = 0.2) -> Iterator[None]:
    """Hold a lock of the operating system, which drops it when its holder dies; wait while another has it.

    Args:
        path: The lock file; it stays, a file that is left behind blocks nobody.
        what: What is being made, for the message.
        tell: Told once that this process waits, and for which.
        every: Seconds between two looks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = None
    while lock is None:
        try:
            lock = FileLock(path, what)
        except IndexLockedError as error:
            if tell is not None:
                tell(f"waiting: {error}")
                tell = None
            time.sleep(every)
    try:
        yield
    finally:
        lock.release()
