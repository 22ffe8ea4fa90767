"""TREC's files: qrels of 4 columns, runs of 6 columns; and the order that trec_eval gives to equal scores.

Columns are separated by tabs when written: an id may hold spaces (a file's name), which trec_eval alone
cannot read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping

import numpy as np

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.eval.files import Line, lines, write_lines
from vlmkit_retrieval.eval.metrics import Qrels

# Score by item by query, best first.
Run = dict[str, dict[str, float]]
QRELS_COLUMNS = "query, 0, item, grade"
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


def trec_qrels(found: Iterator[Line]) -> dict[str, dict[str, int]]:
    """Judgements from lines of 4 columns: query, 0, item, grade."""
    qrels: dict[str, dict[str, int]] = {}
    for line in found:
        query, _, item, value = line.columns(4, QRELS_COLUMNS)
        once(qrels.setdefault(query, {}), item, line, query)
        qrels[query][item] = grade(value, line)
    return qrels


def write_trec_qrels(path: str | os.PathLike[str], qrels: Qrels) -> None:
    """Write judgements with 4 columns.

    Raises:
        RetrievalUsageError: An id has a tab or a line break, or is empty.
    """
    write_lines(
        path,
        (row(query, "0", item, str(value)) for query, own in qrels.items() for item, value in own.items()),
    )


def row(*columns: str) -> str:
    """A line of columns between tabs.

    Raises:
        RetrievalUsageError: A column has a tab or a line break, or is blank.
    """
    for column in columns:
        if not column.strip() or any(mark in column for mark in "\t\r\n"):
            raise RetrievalUsageError(
                f"{column!r} cannot be a column of a TREC or BEIR file: it is blank, or has a tab or a line "
                "break; rename the item"
            )
    return "\t".join(columns)


def once(known: Mapping[str, object], item: str, line: Line, query: str) -> None:
    """Refuse an item that a query has already."""
    if item in known:
        raise line.error(f"{item!r} is there twice for query {query!r}; keep one of the lines")


def grade(value: str, line: Line) -> int:
    """A whole number; relevant from 1 on."""
    try:
        return int(value)
    except ValueError:
        raise line.error(
            f"the grade {value!r} is not a whole number (0 for not relevant, 1, 2, ...)"
        ) from None


def _score(value: str, line: Line) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not abs(score) <= _FLOAT32_MAX:
        raise line.error(f"the score {value!r} is no finite number (float32); columns are: {RUN_COLUMNS}")
    return score
