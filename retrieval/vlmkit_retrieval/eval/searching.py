"""Search an index for every query, and time it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.eval.beir import Query
from vlmkit_retrieval.eval.metrics import Floats
from vlmkit_retrieval.eval.runs import Run
from vlmkit_retrieval.images import load_image
from vlmkit_retrieval.search.hits import SearchHit
from vlmkit_retrieval.types import Hit

Progress = Callable[[int, int], None]


class Searched(Protocol):
    """What can be searched: a `Searcher`, or an index with what it is asked by (`Configured`)."""

    def search(
        self, text: str | None = None, image: Image.Image | None = None, *, k: int = 10
    ) -> Sequence[Hit | SearchHit]:
        """The `k` best items, best first."""
        ...


@dataclass(frozen=True)
class SearchedRun:
    """What was found for every query, and how long it took.

    Attributes:
        run: Score by item by query, best first, equal scores as the index orders them.
        milliseconds_Q: Wall time of each query, from text or pixels to hits: encoder and engine.
    """

    run: Run
    milliseconds_Q: Floats

    def latency(self) -> dict[str, float]:
        """Milliseconds of half of the queries at most (`p50_ms`), and of 95 % of them (`p95_ms`)."""
        p50, p95 = np.percentile(self.milliseconds_Q, (50, 95))
        return {"p50_ms": float(p50), "p95_ms": float(p95)}


def search_all(
    index: Searched,
    queries: Sequence[Query],
    k: int,
    progress: Progress | None = None,
) -> SearchedRun:
    """Search for one query after the other, as a user would.

    The first query runs once before it counts, so that what is loaded on first use is not in its time.
    Reading an image's file is not in the time either.

    Args:
        index: What is searched.
        queries: At least one.
        k: How many items.
        progress: Called with (queries done, queries in all).

    Raises:
        RetrievalError: A query cannot be searched for; the message names it.
    """
    run: Run = {}
    times = []
    for number, query in enumerate(queries):
        image = load_image(query.image) if query.image is not None else None
        try:
            if number == 0:
                index.search(query.text, image, k=k)
            start = time.perf_counter()
            hits = index.search(query.text, image, k=k)
        except ValueError as error:  # our own errors, and those of encoders
            raise RetrievalError(f"query {query.id!r}: {error}") from error
        times.append(1e3 * (time.perf_counter() - start))
        run[query.id] = {hit.id: hit.score for hit in hits}
        if progress is not None:
            progress(number + 1, len(queries))
    return SearchedRun(run, np.array(times))


def disk_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that the files below a folder take on the disk, as `du` counts them: a hole takes none."""
    files = (file.lstat() for file in Path(path).rglob("*") if file.is_file() and not file.is_symlink())
    return sum(_allocated(status) for status in files)


def _allocated(status: os.stat_result) -> int:
    blocks: int | None = getattr(status, "st_blocks", None)  # Windows has none
    return status.st_size if blocks is None else 512 * blocks
