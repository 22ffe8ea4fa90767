"""Measures a shard on its own data: what is found of the exact neighbours, time, memory, disk.

Queries are stored vectors, half of them as they are and half moved away from it by noise, to a cosine of 0.9.
The item that a query was made from is not counted among its neighbours.

Shapes: Q queries, D numbers of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit_retrieval.engines.built import Figures, Setting
from vlmkit_retrieval.engines.edge import EdgeEngine
from vlmkit_retrieval.eval.exact import neighbours_found
from vlmkit_retrieval.eval.metrics import Floats
from vlmkit_retrieval.eval.searching import disk_bytes
from vlmkit_retrieval.eval.stats import CONFIDENCE, RESAMPLES, resampled_means
from vlmkit_retrieval.optimize.memory import resident_bytes
from vlmkit_retrieval.optimize.questions import Questions
from vlmkit_retrieval.types import Hit


@dataclass(frozen=True)
class Searched:
    """All queries, asked one after the other.

    Attributes:
        hits: Of each query, without the item it was made from.
        cpu_Q: Milliseconds of each, all threads.
        wall_Q: The same on the clock.
    """

    hits: list[list[Hit]]
    cpu_Q: Floats
    wall_Q: Floats


def draw(shard: Path, name: str, queries: int, file: Path) -> dict[str, Any]:
    """Draw queries into a file, in a process of its own: what it reads must not count as search's memory.

    Returns:
        `items` and `queries`.
    """
    with EdgeEngine(shard) as engine:
        asked = Questions.draw(engine, name, queries)
    asked.save(file)
    return {"items": asked.items, "queries": len(asked.ids)}


def measure_exact(shard: Path, name: str, k: int, file: Path) -> dict[str, Any]:
    """Search exactly, and add to the queries what was found; the figures."""
    asked, start = Questions.load(file), resident_bytes()
    with EdgeEngine(shard) as engine:
        [(searched, memory)] = list(_searches(engine, name, asked, k, [None], start))
    asked.with_truth(searched.hits).save(file)
    return asdict(_figures(searched, np.ones(len(asked.ids)), memory, shard))


def measure_settings(
    shard: Path, name: str, k: int, file: Path, settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """Search by each setting, against what `measure_exact` found; the figures of each."""
    asked, start = Questions.load(file), resident_bytes()
    found = []
    with EdgeEngine(shard) as engine:
        for searched, memory in _searches(engine, name, asked, k, settings, start):
            recall_Q = np.array([*map(neighbours_found, searched.hits, asked.truth)])
            found.append(asdict(_figures(searched, recall_Q, memory, shard)))
    return found


def _searches(
    engine: EdgeEngine,
    name: str,
    asked: Questions,
    k: int,
    settings: Sequence[Setting | None],
    start: int | None,
) -> Iterator[tuple[Searched, int | None]]:
    """By each setting (None: exactly) what was found, and how much memory has grown since `start`.

    All queries run once before they count: the first ones wait for the disk.
    """
    for number, setting in enumerate(settings):
        engine.settings = {} if setting is None else {name: setting}
        if number == 0:
            search_all(engine, name, asked, k)
        searched, now = search_all(engine, name, asked, k), resident_bytes()
        yield searched, None if start is None or now is None else max(0, now - start)


def search_all(engine: EdgeEngine, name: str, asked: Questions, k: int) -> Searched:
    """Ask every query; one neighbour more, since the nearest is often the item itself."""
    hits, times = [], []
    for id, query_D in zip(asked.ids, asked.vectors_QD, strict=True):
        wall, cpu = time.perf_counter(), time.process_time()
        found = engine.search(name, query_D, k + 1, exact=False)
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
        hits.append([hit for hit in found if hit.id != id][:k])
    cpu_Q, wall_Q = 1e3 * np.array(times).T
    return Searched(hits, cpu_Q, wall_Q)


def _figures(searched: Searched, recall_Q: Floats, memory: int | None, shard: Path) -> Figures:
    means_B1 = resampled_means(recall_Q[:, None], 0, RESAMPLES)
    return Figures(
        recall=float(recall_Q.mean()),
        recall_low=float(np.quantile(means_B1, (1 - CONFIDENCE) / 2)),
        cpu_p50_ms=float(np.median(searched.cpu_Q)),
        cpu_p95_ms=float(np.quantile(searched.cpu_Q, 0.95)),
        wall_p50_ms=float(np.median(searched.wall_Q)),
        wall_p95_ms=float(np.quantile(searched.wall_Q, 0.95)),
        memory_bytes=memory,
        disk_bytes=disk_bytes(shard),
    )
