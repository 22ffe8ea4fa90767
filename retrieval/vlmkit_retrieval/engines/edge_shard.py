"""The shard behind the embedded engine: opened by one process, survives forks, can be exchanged.

Every write and every search goes through a gate: a shard that was built elsewhere takes this one's place
while nobody is inside.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmkit_retrieval.engines import edge_place
from vlmkit_retrieval.engines.base import QdrantPoints
from vlmkit_retrieval.engines.built import Built, Setting
from vlmkit_retrieval.engines.edge_words import EdgeSpaces, read_spaces
from vlmkit_retrieval.engines.gate import Gate
from vlmkit_retrieval.engines.holes import copy_folder
from vlmkit_retrieval.errors import MissingPackageError, RetrievalError
from vlmkit_retrieval.lock import FileLock
from vlmkit_retrieval.types import Space

# Written by the library beside its segments (see `read_spaces`); also how a shard is told from any directory.
CONFIG = "edge_config.json"


class EdgeShard(QdrantPoints):
    """A directory with a shard, owned by one process at a time; see `EdgeEngine`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        super().__init__(str(self._path))
        self._edge = import_edge()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._path.with_name(self._path.name + ".lock"), self.location)
        self._shard: Any = None
        self._known: dict[str, Space] = {}
        self.built = Built()
        self.settings: Mapping[str, Setting] = {}
        self._gate = Gate()
        self._held = ""
        _OPEN.add(self)
        try:
            self._recover()
        except BaseException:
            self._lock.release()
            raise

    @contextmanager
    def copied(self, what: str = "optimized") -> Iterator[tuple[Path, Path]]:
        """Inside, a copy of the shard in a folder of its own: the folder and the copy in it.

        Searches go on; writes are refused, so that the copy, or what is made of it, can take this shard's
        place by `replace_by` and nothing is lost. At the end the folder is removed.

        Args:
            what: Happens to the shard meanwhile, for the message of a refused write.

        Raises:
            RetrievalError: There is such a copy already, or no room for one.
        """
        self._check_usable()
        self._check_made()
        with self._gate.alone():
            self._check_free_to_write()
            self._held = what
        work = None
        try:
            self._shard.flush()
            try:
                work = edge_place.work_folder(self._path)
                copy_folder(self._path, work / "shard")
            except OSError as error:
                raise RetrievalError(
                    f"{self.location} cannot be copied ({error}); make room beside it"
                ) from error
            yield work, work / "shard"
        finally:
            self._held = ""
            if work is not None:
                shutil.rmtree(work, ignore_errors=True)

    def replace_by(self, new: Path) -> None:
        """Put a complete and closed shard, made of this one, in its place; inside `copied`.

        A kill at any moment leaves the old one or the new one.

        Raises:
            RetrievalError: It cannot be opened; the old one is back.
        """
        self._check_usable()
        with self._gate.alone():
            self._shard.close()
            self._shard = None
            edge_place.move_in(new, self._path)
            try:
                self._load()
            except RetrievalError:
                edge_place.move_back(new, self._path)
                self._load()
                raise
        edge_place.remove_old(self._path)

    def _exchange(self, operations: Sequence[Any], built: Built) -> None:
        """Give the shard other spaces: on a copy, which takes its place.

        The library changes each part of a shard, then its list of spaces. It does not open a shard again that
        was left between the two by a kill.
        """
        with self.copied("given other spaces") as (_, copy):
            try:
                changed = self._edge.EdgeShard.load(str(copy))
                for operation in operations:
                    changed.update(operation)
                changed.flush()
                changed.close()
            except Exception as error:  # the library raises plain Exception for everything
                raise RetrievalError(f"{self.location} refused a change of its spaces: {error}") from error
            if built != self.built:
                built.save(copy)
            if self.count():  # a new one, whose encoders come one by one, has nothing to lose yet
                edge_place.sync_files(copy)
            self.replace_by(copy)

    @contextmanager
    def _inside(self) -> Iterator[Any]:
        """The shard, while nobody exchanges or closes it; None before the first space.

        Raises:
            RetrievalError: Another thread has closed it meanwhile.
        """
        with self._gate.inside():
            self._check_usable()
            yield self._shard

    def _recover(self) -> None:
        """Open it; where a swap was killed and the new shard does not open, the old one."""
        edge_place.recover(self._path)
        with_old = edge_place.has_old(self._path)
        try:
            self._load()
        except RetrievalError:
            if not with_old:
                raise
        if with_old and self._shard is None:
            edge_place.bring_back(self._path)
            self._load()
        edge_place.clear(self._path)

    def _load(self) -> None:
        if not self._path.exists() or (self._path.is_dir() and not any(self._path.iterdir())):
            return
        if not (self._path / CONFIG).is_file():
            raise RetrievalError(f"{self.location} exists and is not a vlmkit engine; name a new directory")
        self._known = read_spaces(self._path / CONFIG)
        self.built = Built.load(self._path)
        self.settings = {name: own.setting for name, own in self.built.spaces.items()}
        try:
            self._shard = self._edge.EdgeShard.load(str(self._path))
        except BaseException as error:
            # The library raises plain Exception for everything, and of some damaged files a Rust panic.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise RetrievalError(
                f"{self.location} cannot be opened ({error}); restore it from a copy, or sync into a new one"
            ) from error

    def _create(self, spaces: Mapping[str, Space]) -> None:
        """Create beside and rename, so that a process killed here leaves no half-made shard."""
        work = edge_place.work_folder(self._path)
        try:
            (work / "shard").mkdir()
            self._edge.EdgeShard.create(str(work / "shard"), EdgeSpaces(self._edge).config(spaces)).close()
            if self._path.exists():
                self._path.rmdir()
            (work / "shard").rename(self._path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._load()

    def _update(self, operation: Any) -> None:
        with self._inside() as shard:
            self._check_free_to_write()
            try:
                shard.update(operation)
            except Exception as error:  # the library raises plain Exception for everything
                raise RetrievalError(f"{self.location} refused a write: {error}") from error

    def _check_free_to_write(self) -> None:
        if self._held:
            raise RetrievalError(
                f"{self.location} is being {self._held}: until that is done it can be searched and not "
                "written; repeat the write then"
            )

    def _close(self) -> None:
        try:
            with self._gate.alone():
                closing, self._shard, self._closed = self._shard, None, True
                if closing is not None:
                    closing.flush()
                    closing.close()
        finally:
            self._lock.release()


def import_edge() -> Any:
    """The library.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import qdrant_edge
    except ImportError as error:
        where = ", or where pip finds no wheel of it, make the index with --engine local:engine"
        raise MissingPackageError("qdrant-edge-py", where) from error
    return qdrant_edge


_OPEN: weakref.WeakSet[EdgeShard] = weakref.WeakSet()


def _leak_in_child() -> None:
    """Keep every shard of a forked child alive for ever: its destructor would flush and remove files that
    belong to the parent. The leak is a handle in a copy of the memory, and ends with the child."""
    for engine in list(_OPEN):
        if engine._shard is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine._shard))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leak_in_child)
