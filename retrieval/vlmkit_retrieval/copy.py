"""Copy an index to another directory or engine: how a laptop's index moves to a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.place import beside
from vlmkit_retrieval.types import Point

_BATCH = 256


def copy_index(
    source: str | os.PathLike[str], target: str | os.PathLike[str], engine: str | None = None
) -> int:
    """Copy items with all vectors and payloads, the cache, and what is known of encoders and folders.

    Nothing is encoded. The copy is made beside the target and renamed when it is complete, so that one that
    was killed leaves no target; the next one clears away what is left of it.

    Args:
        source: An index.
        target: The new index's directory, absent or empty.
        engine: Where the copy stores its points, as for `Index.create_or_open`.

    Returns:
        The number of items copied.

    Raises:
        RetrievalError: The source is no index, or the target (or the engine's collection) is not empty.
    """
    place = Path(target).resolve()
    with beside(place) as folder:
        _check_empty(place)
        copied = _copy(source, folder / "index", engine)
        _check_empty(place)  # somebody may have made it meanwhile
        if place.exists():
            place.rmdir()
        (folder / "index").rename(place)
    return copied


def _check_empty(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RetrievalError(f"{target} exists and is not empty; copy into a new directory")


def _copy(source: str | os.PathLike[str], target: Path, engine: str | None) -> int:
    with Index.open(source) as old, Index.create_or_open(target, engine) as new:
        if new.engine.count():
            raise RetrievalError(f"{new.manifest.engine} holds points already; name another collection")
        new.manifest = replace(
            new.manifest,
            encoders=dict(old.manifest.encoders),
            roots=list(old.manifest.roots),
            kinds=list(old.manifest.kinds),
        )
        new.engine.ensure(old.engine.spaces())
        copied = 0
        for points in _batches(old.engine.scroll()):
            new.engine.upsert(points)
            copied += len(points)
        old.features.copy_to(new.features)
        new.manifest.save(new.path)
    return copied


def _batches(points: Iterable[Point]) -> Iterator[list[Point]]:
    waiting = iter(points)
    while batch := list(islice(waiting, _BATCH)):
        yield batch
