"""Runs, what a system found for every query: TREC's files of 6 columns, trec_eval's order of equal scores.

They are written with tabs, as the qrels are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping

import numpy as np

from vlmkit_retrieval.eval.files import Line, lines, once, row, write_lines

# Score by item by query, best first.
Run = dict[str, dict[str, float]]
RUN_COLUMNS = "query, Q0, item, rank, score, name of the run"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def ranked(scores: Mapping[str, float]) -> dict[str, float]:
    """Best first by trec_eval's rule: by score as float32, and equal scores by id, descending."""
    order = sorted(scores, reverse=True)
    return {item: scores[item] for item in sorted(order, key=lambda item: -np.float32(scores[item]))}


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run, each query ordered by `ranked`; the column of ranks is not used, as in trec_eval.

    Raises:
        RetrievalError: A line has other columns, a score that is no finite number, or an item twice.
    """
    found: Run = {}
    for line in lines(path):
        query, _, item, _, score, _ = line.columns(6, RUN_COLUMNS)
        once(found.setdefault(query, {}), item, line, query)
        found[query][item] = _score(score, line)
    return {query: ranked(scores) for query, scores in found.items()}


def write_run(path: str | os.PathLike[str], run: Mapping[str, Mapping[str, float]], name: str) -> None:
    """Write a run whose items are in order, best first.

    An item whose score is not below the one before it is written one step of float32 lower, so that every
    reader finds this very order, however it orders equal scores.

    Args:
        path: The file.
        run: Score by item by query, best first.
        name: Of the run, one word.

    Raises:
        RetrievalUsageError: An id or the name has a tab or a line break, or is empty.
    """
    write_lines(path, _run_lines(run, name))


def _run_lines(run: Mapping[str, Mapping[str, float]], name: str) -> Iterator[str]:
    for query, scores in run.items():
        last = np.float32(math.inf)
        for rank, (item, score) in enumerate(scores.items(), start=1):
            last = min(np.float32(score), np.nextafter(last, np.float32(-math.inf)))
            yield row(query, "Q0", item, str(rank), f"{last:.9g}", name)


def _score(value: str, line: Line) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not abs(score) <= _FLOAT32_MAX:
        raise line.error(f"the score {value!r} is no finite number (float32); columns are: {RUN_COLUMNS}")
    return score
