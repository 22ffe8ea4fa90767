"""The directory of an index: made where nothing is, and taken away again where making it failed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vlmkit_retrieval.errors import RetrievalError


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
