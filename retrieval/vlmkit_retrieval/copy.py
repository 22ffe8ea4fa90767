"""Copy an index to another directory or engine: how a laptop's index moves to a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.types import Point

_BATCH = 256


def copy_index(
    source: str | os.PathLike[str], target: str | os.PathLike[str], engine: str | None = None
) -> int:
    """Copy all items with vectors and payloads, and what the index knows of its encoders and folders.

    A copy that was killed is made again from the start, into another directory. Nothing is encoded. The cache
    of vectors is not copied: it fills again when files change.

    Args:
        source: An index.
        target: The new index's directory, absent or empty.
        engine: Where the copy stores its points, as for `Index.create_or_open`.

    Returns:
        The number of items copied.

    Raises:
        RetrievalError: The source is no index, or the target (or the engine's collection) is not empty.
    """
    with Index.open(source) as old, Index.create_or_open(target, engine) as new:
        if new.manifest.encoders or new.engine.count():
            raise RetrievalError(f"{os.fspath(target)} is an index with content; copy into a new directory")
        new.manifest = replace(
            new.manifest, encoders=dict(old.manifest.encoders), roots=list(old.manifest.roots)
        )
        new.engine.ensure({name: entry.dim for name, entry in old.manifest.encoders.items()})
        copied = 0
        for points in _batches(old.engine.scroll()):
            new.engine.upsert(points)
            copied += len(points)
        new.manifest.save(new.path)  # last: an index with encoders is a finished copy
    return copied


def _batches(points: Iterable[Point]) -> Iterator[list[Point]]:
    waiting = iter(points)
    while batch := list(islice(waiting, _BATCH)):
        yield batch
