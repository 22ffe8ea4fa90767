"""The directory of an index: made where nothing is, and taken away again where making it failed.

.INDEX.vlmkit-copy-*/  where a copy that becomes INDEX is made, with a lock that its maker holds
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from types import TracebackType

from vlmkit_retrieval.errors import IndexLockedError, RetrievalError
from vlmkit_retrieval.lock import FileLock


@dataclass
class Discard:
    """Removes a directory after an error, while armed; knows no index, which would then outlive its `del`."""

    path: Path
    armed: bool

    def __call__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As a context manager's exit."""
        if error is not None and self.armed:
            shutil.rmtree(self.path, ignore_errors=True)


def make(directory: Path) -> bool:
    """Make it; whether it was made here, and not by another process meanwhile."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


def check_free(directory: Path) -> None:
    """Refuse a directory that holds something.

    Raises:
        RetrievalError: It does.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.glob("[!.]*"))):
        raise RetrievalError(f"{directory} exists and is not an index; name a new or an empty directory")


@contextmanager
def beside(directory: Path) -> Iterator[Path]:
    """A folder on the same disk for what becomes a directory, whole or not at all; removed at the end.

    What a killed process left there is removed first: a folder whose lock nobody holds.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}.vlmkit-copy-"
    for left in directory.parent.glob(escape(prefix) + "*"):
        _remove_abandoned(left)
    folder, lock = _locked_folder(directory.parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, FileLock]:
    """Again where somebody who clears away came between the two steps, and took it for abandoned."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = FileLock(folder / ".lock", str(folder))
            if os.path.samestat(os.fstat(lock.fileno()), (folder / ".lock").stat()):
                return folder, lock
        except (RetrievalError, FileNotFoundError) as error:
            if folder.exists() and not isinstance(error, IndexLockedError):
                raise


def _remove_abandoned(folder: Path) -> None:
    if not (folder / ".lock").is_file():
        with suppress(OSError):  # killed before it locked; a folder with something in it is somebody else's
            folder.rmdir()
        return
    with suppress(IndexLockedError):
        lock = FileLock(folder / ".lock", str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
