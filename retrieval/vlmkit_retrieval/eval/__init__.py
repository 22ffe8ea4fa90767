"""How good retrieval is: metrics with intervals, BEIR's and TREC's files, an index against judgements."""

from vlmkit_retrieval.eval.beir import (
    Document,
    Query,
    read_corpus,
    read_queries,
    write_corpus,
    write_queries,
)
from vlmkit_retrieval.eval.evaluate import Evaluation, evaluate, item_names
from vlmkit_retrieval.eval.exact import against_exact
from vlmkit_retrieval.eval.measured import Measured, differences, measure_run
from vlmkit_retrieval.eval.metrics import METRICS, Scores, score
from vlmkit_retrieval.eval.names import Names
from vlmkit_retrieval.eval.qrels import read_qrels, write_qrels, write_trec_qrels
from vlmkit_retrieval.eval.runs import Run, ranked, read_run, write_run
from vlmkit_retrieval.eval.searching import search_all
from vlmkit_retrieval.eval.stats import Difference, Estimate, compare, estimate
from vlmkit_retrieval.eval.task import Task, load_task

__all__ = [
    "METRICS",
    "Difference",
    "Document",
    "Estimate",
    "Evaluation",
    "Measured",
    "Names",
    "Query",
    "Run",
    "Scores",
    "Task",
    "against_exact",
    "compare",
    "differences",
    "estimate",
    "evaluate",
    "item_names",
    "load_task",
    "measure_run",
    "ranked",
    "read_corpus",
    "read_qrels",
    "read_queries",
    "read_run",
    "score",
    "search_all",
    "write_corpus",
    "write_qrels",
    "write_queries",
    "write_run",
    "write_trec_qrels",
]
