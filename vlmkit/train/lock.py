"""One process trains into a run directory at a time: two would overwrite each other's checkpoints."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import broadcast_object_list

from vlmkit.checkpoint import MANIFEST
from vlmkit.errors import UsageError
from vlmkit.train.distribute import process_state
from vlmkit.train.metrics import Reporter
from vlmkit_retrieval.errors import IndexLockedError, RetrievalError
from vlmkit_retrieval.lock import FileLock

# In the run directory; it stays, a file that is left behind blocks nobody.
LOCK = "lock"
# What systems say that have no such locks (some network file systems).
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(run_dir: Path, reporter: Reporter, new: bool = False) -> Iterator[None]:
    """Hold a run directory. The system drops the lock when its holder dies, by kill -9 too.

    Every process of a run calls it; the main one holds the lock, and all of them learn whether it does.

    Args:
        run_dir: Created where absent.
        reporter: Told where the file system has no locks: two runs in one directory are not noticed there.
        new: The run is about to begin: another process must not have begun it meanwhile.

    Raises:
        UsageError: Another process holds it; names its process id and its host.
    """
    state = process_state()
    lock, refusal = _take(run_dir, reporter, new) if state.is_main_process else (None, None)
    try:
        if state.num_processes > 1:
            (refusal,) = broadcast_object_list([refusal])
        if refusal is not None:
            raise UsageError(refusal)
        yield
    finally:
        if lock is not None:
            lock.release()


def _take(run_dir: Path, reporter: Reporter, new: bool) -> tuple[FileLock | None, str | None]:
    """The lock, and why this process must not go on."""
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run_dir / LOCK, f"run {run_dir}")
    except IndexLockedError:
        return None, (
            f"{run_dir} is in use: {_holder(run_dir)} trains into it; wait for it or end it"
            + (", or set output=ANOTHER_DIRECTORY" if new else "")
        )
    except RetrievalError as error:
        if getattr(error.__cause__, "errno", None) not in NO_LOCKS:
            raise
        reporter.note(f"{run_dir} is on a file system without locks: let no second run write into it")
        return None, None
    # After the process id, which the lock itself has written.
    os.write(lock.fileno(), f"{platform.node()}\n".encode())
    if new and (run_dir / MANIFEST).exists():
        return lock, f"{run_dir} holds a run that another process has begun meanwhile; add --resume"
    return lock, None


def _holder(run_dir: Path) -> str:
    lines = (run_dir / LOCK).read_text(encoding="utf-8").split()
    pid, host = [*lines, "?", "?"][:2]
    return f"process {pid} on {host}"
