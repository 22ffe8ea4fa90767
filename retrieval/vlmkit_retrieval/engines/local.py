"""Qdrant's local mode (`qdrant-client` without a server): in memory, or in files where no edge wheel exists.

It is written in Python: slower than the embedded engine by a factor of ten and more, and meant by its authors
for up to 20,000 points. It compares every vector, and knows no payload index. It keeps float32 where a space
is half, too, and forgets over a reopen that a space which was added later is half.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit_retrieval.engines.client import ClientPoints, import_client
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.lock import FileLock

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_COLLECTION = "vlmkit"
_MARK = "vlmkit-engine.json"
_MADE = {"engine": "qdrant-client, local mode", "made by": "vlmkit"}


class LocalPoints(ClientPoints):
    """Points of local mode, which loses writes and raises where two threads are in it: one call at a time."""

    def __init__(self, location: str, client: QdrantClient) -> None:
        self._one_at_a_time = threading.RLock()
        super().__init__(location, client, _COLLECTION)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with self._one_at_a_time:
            yield


class MemoryEngine(LocalPoints):
    """Points that are gone when the process ends: for experiments and tests.

    Raises:
        MissingPackageError: qdrant-client is not installed.
    """

    def __init__(self) -> None:
        super().__init__(":memory:", import_client()(":memory:"))


class LocalEngine(LocalPoints):
    """Points in a directory of local mode, owned by one process at a time: `local:DIRECTORY`.

    Its files hold Python pickles, and who opens them runs what is in them. So a directory is refused that
    does not carry vlmkit's mark. The mark keeps one from opening a wrong directory, not from a forged one:
    open none that comes from somebody else. A point survives a kill -9 whole; a call of several in part.

    Args:
        path: The directory; made where absent.

    Raises:
        IndexLockedError: It is open elsewhere.
        RetrievalError: vlmkit did not make it.
        MissingPackageError: qdrant-client is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        directory = Path(path)
        client = import_client()
        directory.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(directory.with_name(directory.name + ".lock"), str(directory))
        try:
            _mark(directory)
            super().__init__(str(directory), client(path=str(directory)))
        except BaseException:
            self._lock.release()
            raise

    def _close(self) -> None:
        try:
            super()._close()
        finally:
            self._lock.release()


def _mark(directory: Path) -> None:
    """Mark a new directory; refuse one that has no mark.

    Raises:
        RetrievalError: It holds something without a mark.
    """
    mark = directory / _MARK
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        if not mark.is_file() or mark.read_text("utf-8", "replace") != json.dumps(_MADE):
            raise RetrievalError(
                f"{directory} exists and was not made by vlmkit; files of Qdrant's local mode are pickles, "
                "and opening them runs what is in them: name a new directory"
            )
        return
    directory.mkdir(exist_ok=True)
    new = directory.with_name(directory.name + ".mark")
    new.write_text(json.dumps(_MADE), "utf-8")
    new.replace(mark)
