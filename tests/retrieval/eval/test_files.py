"""BEIR's and TREC's files: there and back, as others write them, and what is wrong with its place."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.eval import (
    Document,
    Query,
    ranked,
    read_corpus,
    read_qrels,
    read_queries,
    read_run,
    write_corpus,
    write_qrels,
    write_queries,
    write_run,
    write_trec_qrels,
)

QRELS = {"q1": {"my photos/a b.png": 2, "é.png": 0}, "q 2": {"c.png": 1}}
PLAIN = {"q1": {"a": 2, "b": 0}, "q2": {"c": 1}}


@pytest.fixture
def file(tmp_path):
    def write(text, name="file"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("write", [write_qrels, write_trec_qrels])
def test_qrels_there_and_back(tmp_path, write):
    write(tmp_path / "qrels", QRELS)
    assert read_qrels(tmp_path / "qrels") == QRELS


def test_what_we_write_is_what_trec_eval_reads(tmp_path):
    write_trec_qrels(tmp_path / "qrels", PLAIN)
    write_run(tmp_path / "run", {"q1": {"b": 0.75, "a": 0.25}}, "name")
    with (tmp_path / "qrels").open() as qrels, (tmp_path / "run").open() as run:
        assert pytrec_eval.parse_qrel(qrels) == PLAIN
        assert pytrec_eval.parse_run(run) == {"q1": {"b": 0.75, "a": 0.25}}
    assert (tmp_path / "run").read_text().splitlines()[0] == "q1\tQ0\tb\t1\t0.75\tname"


def test_files_of_others_are_read(file):
    assert read_qrels(file("q1 0 a 2\r\nq1\t0\tb 0\n\nq2   0  c  1")) == PLAIN
    assert read_qrels(file("\ufeffquery-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\nq2\tc\t1\n")) == PLAIN
    run = read_run(file("q1 Q0 a 1 0.5 tag\nq1 Q0 b 2 7e-1 tag\nq1 Q0 c 3 0.5 tag\n"))
    assert {query: list(scores) for query, scores in run.items()} == {"q1": ["b", "c", "a"]}


def test_ties_are_ordered_as_trec_eval_does():
    close = {"a": 0.1, "b": 0.1 + 1e-12, "Z": 0.1, "é": 0.1, "x": 0.2}
    assert list(ranked(close)) == ["x", "é", "b", "a", "Z"]


def test_a_written_run_keeps_scores_and_the_order_of_ties(tmp_path):
    scores = {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.5 + 1e-12, "e": -0.25, "f": -0.25}
    write_run(tmp_path / "run", {"q": scores}, "run")
    back = read_run(tmp_path / "run")["q"]
    assert list(back) == list(scores)
    assert np.allclose(list(back.values()), list(scores.values()), atol=1e-6)
    assert len(set(map(np.float32, back.values()))) == len(scores)
    assert back["a"] == 1.0 and back["b"] == 0.5 and back["e"] == -0.25


def test_queries_and_corpus_there_and_back(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images/one.png")
    image = tmp_path / "images/one.png"
    queries = [Query("1", "a red triangle"), Query("2", None, image), Query("3", "like this, but réd", image)]
    write_queries(tmp_path / "queries.jsonl", queries)
    assert '"image": "images/one.png"' in (tmp_path / "queries.jsonl").read_text()
    assert list(read_queries(tmp_path / "queries.jsonl").values()) == queries
    corpus = [Document("d1", "body", "title"), Document("d2", image=image)]
    write_corpus(tmp_path / "corpus.jsonl", corpus)
    assert list(read_corpus(tmp_path / "corpus.jsonl").values()) == corpus


def test_other_keys_and_nulls_of_beir_are_passed_over(file):
    found = read_queries(file('{"_id": "1", "text": "x", "image": null, "metadata": {"url": "y"}}\n'))
    assert found == {"1": Query("1", "x")}


BAD_QRELS = {
    "q1 0 a\n": r"line 1: .* 3 columns .* put this line first: .query-id.tcorpus-id.tscore",
    "q1 0 a 1 x\n": "line 1: .* 5 columns, not the 4 of: query, 0, item, grade",
    "q1 0 a 1\n\nq1 0 b yes\n": "line 3: the grade 'yes' is not a whole number",
    "q1 0 a 1\nq1 0 a 2\n": "line 2: 'a' is there twice for query 'q1'",
    "query-id\tcorpus-id\tscore\nq1\ta\n": "line 2: .* 2 columns, not the 3 of: query-id, corpus-id, score",
    "query-id\tcorpus-id\tscore\nq1\ta\t0.5\n": "line 2: the grade '0.5'",
    "query-id\tcorpus-id\tscore\n": "has a header and no judgements",
    "\n": "has no lines",
    b"q1 0 \xe9 1\n": "line 1: is not UTF-8",
}
BAD_RUNS = {
    "q1 Q0 a 1 0.5\n": "line 1: .* 5 columns, not the 6 of: query, Q0, item, rank, score, name of the run",
    "q1 Q0 a 1 high t\n": "line 1: the score 'high' is no finite number",
    "q1 Q0 a 1 nan t\n": "line 1: the score 'nan'",
    "q1 Q0 a 1 1e39 t\n": "line 1: the score '1e39'",
    "q1 Q0 a 1 2 t\nq1 Q0 a 2 1 t\n": "line 2: 'a' is there twice for query 'q1'",
}
BAD_QUERIES = {
    "{": r"line 1: is not JSON",
    "[1]": "line 1: is list, not an object",
    '{"id": "1", "text": "x"}': r"line 1: has no '_id' \(it has: id, text\)",
    '{"_id": 1, "text": "x"}': "line 1: '_id' is 1, not text",
    '{"_id": "1", "text": " "}': "line 1: '1' has neither 'text' nor 'image'",
    '{"_id": "1", "image": "gone.png"}': "line 1: image 'gone.png' does not exist in .*; paths are relative",
    '{"_id": "1", "text": "x"}\n{"_id": "1", "text": "y"}': "line 2: '_id' '1' is there twice",
}
BAD = [
    *((read_qrels, text, says) for text, says in BAD_QRELS.items()),
    *((read_run, text, says) for text, says in BAD_RUNS.items()),
    *((read_queries, text, says) for text, says in BAD_QUERIES.items()),
]


@pytest.mark.parametrize(("read", "text", "says"), BAD)
def test_an_error_names_the_file_and_the_line(file, read, text, says):
    with pytest.raises(RetrievalError, match=says) as error:
        read(file(text, "the-file"))
    assert "the-file" in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RetrievalUsageError, match="nowhere is not a file"):
        read_qrels(tmp_path / "nowhere")
    with pytest.raises(RetrievalUsageError, match=r"folder of .* does not exist"):
        write_qrels(tmp_path / "no" / "qrels", PLAIN)


@pytest.mark.parametrize("item", ["a\tb", "a\nb", " "])
def test_an_id_that_no_column_holds_is_refused_and_nothing_is_written(tmp_path, item):
    for write in (write_qrels, write_trec_qrels):
        with pytest.raises(RetrievalUsageError, match="cannot be a column"):
            write(tmp_path / "qrels", {"q": {item: 1}})
    assert not list(tmp_path.iterdir())
