"""How good retrieval is: metrics with intervals, BEIR's and TREC's files, an index against judgements."""

from vlmkit_retrieval.eval.beir import (
    Document,
    Query,
    read_corpus,
    read_qrels,
    read_queries,
    write_corpus,
    write_qrels,
    write_queries,
)
from vlmkit_retrieval.eval.evaluate import (
    Evaluation,
    Measured,
    differences,
    evaluate,
    item_names,
    measure_run,
)
from vlmkit_retrieval.eval.exact import ApproximateEngine, against_exact
from vlmkit_retrieval.eval.metrics import METRICS, Scores, score
from vlmkit_retrieval.eval.names import Names
from vlmkit_retrieval.eval.searching import search_all
from vlmkit_retrieval.eval.stats import Difference, Estimate, compare, estimate
from vlmkit_retrieval.eval.task import Task, load_task
from vlmkit_retrieval.eval.trec import Run, ranked, read_run, write_run, write_trec_qrels

__all__ = [
    "METRICS",
    "ApproximateEngine",
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
