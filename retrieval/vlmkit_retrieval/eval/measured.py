"""A system against the judgements of a task, and against another system."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.eval.metrics import Scores, score
from vlmkit_retrieval.eval.names import Names
from vlmkit_retrieval.eval.runs import Run, read_run
from vlmkit_retrieval.eval.stats import Difference, Estimate, compare, estimate
from vlmkit_retrieval.eval.task import Task


@dataclass(frozen=True)
class Measured:
    """A system against the judgements of a task.

    Attributes:
        name: Path of its index, or of its run.
        scores: Every metric for every query.
        estimates: Mean and interval by metric.
        run: Score by item by query, best first; items by the names of the qrels.
    """

    name: str
    scores: Scores
    estimates: Mapping[str, Estimate]
    run: Run


def measure_run(path: str | os.PathLike[str], task: Task, names: Names, k: int = 10) -> Measured:
    """A run in TREC's format against a task; its items by the names of the qrels, or by those of the index.

    Raises:
        RetrievalError: The file is damaged, or has none of the queries, or no judged item for any of them.
    """
    run = names.rename(read_run(path))
    if not run.keys() & task.qrels.keys():
        raise RetrievalError(
            f"{os.fspath(path)} has none of the queries of the qrels (its first is "
            f"{next(iter(run), 'nothing')!r}, theirs {next(iter(task.qrels))!r}); give a run of these queries"
        )
    if not any(run.get(query, {}).keys() & grades.keys() for query, grades in task.qrels.items()):
        raise RetrievalError(
            f"{os.fspath(path)} names no judged item; name items as the qrels do, or as the index does"
        )
    scores = score(task.qrels, run, k)
    return Measured(os.fspath(path), scores, estimate(scores), run)


def differences(system: Measured, other: Measured) -> dict[str, Difference]:
    """The paired comparison: positive where `system` is better than `other`."""
    return compare(system.scores, other.scores)
