"""Judgements in BEIR's files (3 columns after a header) and in TREC's (4 columns).

Both are written with tabs between the columns: an id may hold spaces (a file's name), which trec_eval alone
cannot read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.eval.files import Line, lines, once, row, write_lines
from vlmkit_retrieval.eval.metrics import Qrels

HEADER = ("query-id", "corpus-id", "score")
QRELS_COLUMNS = "query, 0, item, grade"


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Grade by item by query, of BEIR's file (3 columns, with header) or of TREC's (4 columns, without).

    Raises:
        RetrievalError: It is neither, has no lines, a grade is no whole number, or an item is there twice.
    """
    found = lines(path)
    first = next(found, None)
    if first is None:
        raise RetrievalUsageError(f"{os.fspath(path)} has no lines; give judgements")
    if tuple(first.text.split()) == HEADER:
        qrels = _beir_qrels(found)
        if not qrels:
            raise RetrievalUsageError(f"{os.fspath(path)} has a header and no judgements; give some")
        return qrels
    if len(first.text.split("\t")) == 3 or len(first.text.split()) == 3:
        raise first.error(
            f"{first.text!r} has 3 columns and is not the header of BEIR's qrels; "
            f"put this line first: {row(*HEADER)!r}"
        )
    return _trec_qrels(itertools.chain([first], found))


def write_qrels(path: str | os.PathLike[str], qrels: Qrels) -> None:
    """Write BEIR's judgements: a header and 3 columns.

    Raises:
        RetrievalUsageError: An id has a tab or a line break, or is empty.
    """
    judged = (row(query, item, str(grade)) for query, own in qrels.items() for item, grade in own.items())
    write_lines(path, itertools.chain([row(*HEADER)], judged))


def write_trec_qrels(path: str | os.PathLike[str], qrels: Qrels) -> None:
    """Write judgements with 4 columns.

    Raises:
        RetrievalUsageError: An id has a tab or a line break, or is empty.
    """
    write_lines(
        path,
        (row(query, "0", item, str(value)) for query, own in qrels.items() for item, value in own.items()),
    )


def _beir_qrels(found: Iterator[Line]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for line in found:
        query, item, value = line.columns(3, f"{', '.join(HEADER)} (TREC's qrels have: {QRELS_COLUMNS})")
        once(qrels.setdefault(query, {}), item, line, query)
        qrels[query][item] = _grade(value, line)
    return qrels


def _trec_qrels(found: Iterator[Line]) -> dict[str, dict[str, int]]:
    """Judgements from lines of 4 columns: query, 0, item, grade."""
    qrels: dict[str, dict[str, int]] = {}
    for line in found:
        query, _, item, value = line.columns(4, QRELS_COLUMNS)
        once(qrels.setdefault(query, {}), item, line, query)
        qrels[query][item] = _grade(value, line)
    return qrels


def _grade(value: str, line: Line) -> int:
    """A whole number; relevant from 1 on."""
    try:
        return int(value)
    except ValueError:
        raise line.error(
            f"the grade {value!r} is not a whole number (0 for not relevant, 1, 2, ...)"
        ) from None
