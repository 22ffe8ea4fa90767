"""What is asked and what is right: queries with their judgements, checked against each other."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.eval.beir import Document, Query, read_corpus, read_queries
from vlmkit_retrieval.eval.metrics import Qrels
from vlmkit_retrieval.eval.qrels import read_qrels

QUERIES = "queries.jsonl"


@dataclass(frozen=True)
class Task:
    """Queries and their judgements.

    Attributes:
        qrels: Only of queries to which something is relevant, in the order of the file.
        queries: One for each of `qrels`, in the same order.
        folder: Of the qrels.
        corpus: Entries by id, where a corpus was given.
        nothing_relevant: Queries that were left out: no judgement of them is above 0.
    """

    qrels: Qrels
    queries: tuple[Query, ...]
    folder: Path
    corpus: dict[str, Document] = field(default_factory=dict)
    nothing_relevant: tuple[str, ...] = ()


def load_task(
    qrels: str | os.PathLike[str],
    queries: str | os.PathLike[str] | None = None,
    corpus: str | os.PathLike[str] | None = None,
) -> Task:
    """Read a task.

    Args:
        qrels: Of BEIR or of TREC.
        queries: None for `queries.jsonl` in the folder of the qrels, or in the one above, as BEIR has it.
        corpus: Says which image an id of the qrels is; without it an id is a path.

    Raises:
        RetrievalError: A file is damaged, a judged query is not among the queries, or nothing is relevant.
    """
    source = Path(queries) if queries is not None else _beside(Path(qrels))
    judged, found = read_qrels(qrels), read_queries(source)
    relevant = {query: own for query, own in judged.items() if max(own.values()) > 0}
    if not relevant:
        raise RetrievalError(f"{os.fspath(qrels)}: no grade is above 0, so nothing is relevant to any query")
    missing = [query for query in relevant if query not in found]
    if missing:
        raise RetrievalError(
            f"{source} lacks {len(missing)} of the {len(relevant)} queries of {os.fspath(qrels)}, the first "
            f"is {missing[0]!r}; give the queries that belong to these qrels"
        )
    return Task(
        relevant,
        tuple(found[query] for query in relevant),
        Path(qrels).absolute().parent,
        read_corpus(corpus) if corpus is not None else {},
        tuple(query for query in judged if query not in relevant),
    )


def _beside(qrels: Path) -> Path:
    places = [folder / QUERIES for folder in (qrels.absolute().parent, qrels.absolute().parent.parent)]
    for place in places:
        if place.is_file():
            return place
    raise RetrievalUsageError(
        f"no {QUERIES} is beside {qrels} or in the folder above; name the file: --queries FILE"
    )
