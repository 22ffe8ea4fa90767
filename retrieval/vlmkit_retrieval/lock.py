"""One process at a time: a lock file that names its holder.

The operating system drops the lock when its holder dies, also by kill -9, so a lock file that is left behind
blocks nobody. It is never deleted: two processes could then hold a lock on two files of one name.
"""

from __future__ import annotations

import errno
import os
import sys
import weakref
from pathlib import Path

from vlmkit_retrieval.errors import IndexLockedError, RetrievalError

# Windows locks are mandatory: the locked byte lies far behind the pid, which others must be able to read.
_LOCKED_BYTE = 1 << 20


class FileLock:
    """An exclusive lock, taken at construction and held until `release`.

    Args:
        path: The lock file; created where absent.
        what: What the lock protects, for the message (`index photos.idx`).

    Raises:
        IndexLockedError: Somebody holds it; the message names the holder's process id.
        RetrievalError: The file cannot be written.
    """

    _fd: int | None = None

    def __init__(self, path: Path, what: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RetrievalError(
                f"{what} cannot be locked: {path}: {error.strerror}; check its permissions"
            ) from error
        try:
            _lock(self._fd)
        except OSError as error:
            holder = os.read(self._fd, 32)
            self.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise RetrievalError(
                    f"{what} cannot be locked: {path}: {error.strerror}; put it on a local disk"
                ) from error
            raise IndexLockedError(_message(what, holder.decode("ascii", "replace").strip())) from error
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())
        _HELD.add(self)

    def fileno(self) -> int:
        """The descriptor, of a lock that is held: a process that inherits it holds the lock, too."""
        assert self._fd is not None
        return self._fd

    def release(self) -> None:
        """Let go, also for those that have inherited it; a second call is no error."""
        if self._fd is not None:
            _unlock(self._fd)
        self.close()

    def close(self) -> None:
        """Close without unlocking: a process that shares the lock, a parent or a child, keeps it."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None

    def __del__(self) -> None:
        self.release()


def _message(what: str, holder: str) -> str:
    if holder == str(os.getpid()):
        return f"{what} is already open in this process (pid {holder}); close it first, or use the open one"
    who = f"process {holder}" if holder else "another process"
    return f"{what} is in use by {who}; one process can use it at a time: wait for that one or stop it"


if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(fd, 0, os.SEEK_SET)

    def _unlock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _abandon_in_child() -> None:
    """A forked child that outlives its parent must not keep the parent's lock."""
    for lock in list(_HELD):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)
