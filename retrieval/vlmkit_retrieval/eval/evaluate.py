"""An index against judgements: how good, how sure, how fast, how large."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmkit_retrieval.encoders import Encoder
from vlmkit_retrieval.engines import engine_kind
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.eval.beir import Query
from vlmkit_retrieval.eval.configured import Configured
from vlmkit_retrieval.eval.measured import Measured
from vlmkit_retrieval.eval.metrics import score
from vlmkit_retrieval.eval.names import Names, judged_names, relevant_names
from vlmkit_retrieval.eval.searching import Progress, disk_bytes, search_all
from vlmkit_retrieval.eval.stats import CONFIDENCE, RESAMPLES, estimate
from vlmkit_retrieval.eval.task import Task
from vlmkit_retrieval.search.options import SearchOptions

if TYPE_CHECKING:
    from vlmkit_retrieval.index import Index


@dataclass(frozen=True)
class Evaluation(Measured):
    """An index against the judgements of a task.

    Attributes:
        items: How many it holds.
        latency: `p50_ms` and `p95_ms` of a query, encoder and engine.
        disk_bytes: What its directory takes; points on a server are not in it.
        points_at: Where its points are, if on a server.
        lists: The lists that were asked, `SPACE:PART`, and what each weighs.
        lost_items: Relevant items of the qrels that are not in the index: no search can find them.
        lost_queries: Queries of which that is true of every relevant item.
        exact: `recall` of the k exact neighbours, `p50_ms` and `exact_p50_ms` of the engine alone;
            None where every search is exact.
    """

    items: int
    latency: Mapping[str, float]
    disk_bytes: int
    points_at: str | None
    lists: Mapping[str, float]
    lost_items: int
    lost_queries: tuple[str, ...]
    exact: Mapping[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the run, as JSON values."""
        stated = {
            key: getattr(self, key)
            for key in ("items", "disk_bytes", "points_at", "lost_items", "lost_queries")
        }
        return {
            "index": self.name,
            "queries": len(self.scores.queries),
            "metrics": {name: asdict(found) for name, found in self.estimates.items()},
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "lists": dict(self.lists),
            "latency": dict(self.latency),
            "exact": None if self.exact is None else dict(self.exact),
            **stated,
            "by_query": self.scores.by_query(),
        }


def evaluate(
    index: Index,
    task: Task,
    embedder: Encoder | Sequence[Encoder],
    k: int = 10,
    roots: Sequence[str | os.PathLike[str]] = (),
    progress: Progress | None = None,
    options: SearchOptions | None = None,
) -> Evaluation:
    """Search an index for every query of a task and measure what comes back.

    Args:
        index: An open index.
        task: Queries and judgements.
        embedder: An encoder that filled it, or several of any kind, whose lists are fused as in a search.
        k: The cut-off of every metric.
        roots: Folders that the paths in the qrels are relative to; none for the rule of `Names`.
        progress: Called with (queries done, queries in all).
        options: Of every search; a weight counts for those queries that ask its list.

    Raises:
        RetrievalUsageError: A weight for a list that no query asks.
        RetrievalError: No relevant item is in the index, or a query cannot be searched for.
    """
    names = item_names(index, task, roots)
    lost_queries = _lost_queries(names, task, index)
    given = embedder if isinstance(embedder, Sequence) else [embedder]
    configured = Configured(index, given, options or SearchOptions())
    lists = configured.lists(task.queries)
    found = search_all(configured, task.queries, k, progress)
    run = names.rename(found.run)
    scores = score(task.qrels, run, k)
    location = index.manifest.engine
    return Evaluation(
        str(index.path),
        scores,
        estimate(scores),
        run,
        items=index.engine.count(),
        latency=found.latency(),
        disk_bytes=disk_bytes(index.path),
        points_at=None if engine_kind(location) in ("directory", "local") else location,
        lists=lists,
        lost_items=len(relevant_names(task.qrels) - names.item_of.keys()),
        lost_queries=lost_queries,
        exact=_exact(configured, task.queries, k) if index.engine.approximate else None,
    )


def item_names(index: Index, task: Task, roots: Sequence[str | os.PathLike[str]] = ()) -> Names:
    """Which items of an index the qrels of a task name; see the module `names` for the rule."""
    items = index.engine.ids()
    synced = [Path(root).parent if root in set(items) else root for root in index.manifest.roots]
    folders = roots or [task.folder, *synced]
    return Names(judged_names(task.qrels), items, folders, task.corpus)


def _lost_queries(names: Names, task: Task, index: Index) -> tuple[str, ...]:
    """Queries that the index cannot answer, whatever it finds.

    Raises:
        RetrievalError: That is all of them.
    """
    lost = tuple(
        query for query in task.qrels if not relevant_names({query: task.qrels[query]}) & names.item_of.keys()
    )
    if len(lost) == len(task.qrels):
        example = min(relevant_names(task.qrels))
        held = next(iter(index.engine.ids()), "nothing")
        raise RetrievalError(
            f"no relevant item of the qrels is in index {index.path}: the qrels name {example!r}, the index "
            f"holds {held!r}; say which folder the qrels' paths are relative to: --root FOLDER"
        )
    return lost


def _exact(configured: Configured, queries: Sequence[Query], k: int) -> dict[str, float] | None:
    """None where nothing that was asked has an approximate index: words and patches have none."""
    both = configured.against_exact(queries, k)
    if not len(both.recall_Q):
        return None
    return {
        "recall": float(both.recall_Q.mean()),
        "p50_ms": float(np.median(both.milliseconds_Q)),
        "exact_p50_ms": float(np.median(both.exact_milliseconds_Q)),
    }
