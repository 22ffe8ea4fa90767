"""An index of coloured images against judgements, with a fake encoder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlmkit_retrieval import Bm25Terms
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.eval import (
    Query,
    differences,
    evaluate,
    item_names,
    load_task,
    measure_run,
    search_all,
    write_qrels,
    write_queries,
    write_run,
    write_trec_qrels,
)
from vlmkit_retrieval.eval.searching import disk_bytes
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.search import SearchOptions
from vlmkit_retrieval.types import Hit

QRELS = {
    "text": {"red.png": 1},
    "picture": {"deep/blue.png": 1, "green.png": 1},
    "wrong": {"deep/blue.png": 2},
    "nothing": {"red.png": 0},
}


@pytest.fixture
def data(tmp_path, photos, save_image):
    """A BEIR folder beside the photos; "wrong" asks for green where blue is right."""
    query = save_image(tmp_path / "data" / "query.png", (0, 40, 220))
    write_queries(
        tmp_path / "data" / "queries.jsonl",
        [
            Query("text", "a red thing"),
            Query("picture", None, query),
            Query("wrong", "green"),
            Query("nothing", "x"),
        ],
    )
    (tmp_path / "data" / "qrels").mkdir()
    write_qrels(tmp_path / "data" / "qrels" / "test.tsv", QRELS)
    return tmp_path / "data"


@pytest.fixture
def task(data):
    return load_task(data / "qrels" / "test.tsv")


@pytest.fixture
def index(tmp_path, photos, colours):
    with Index.create_or_open(tmp_path / "i") as index:
        index.sync([photos], colours)
        yield index


def test_figures_by_hand(index, task, colours):
    found = evaluate(index, task, colours, k=2)
    assert found.scores.by_query() == {
        "text": {"recall@2": 1.0, "mrr@2": 1.0, "ndcg@2": 1.0, "map@2": 1.0},
        "picture": {"recall@2": 1.0, "mrr@2": 1.0, "ndcg@2": 1.0, "map@2": 1.0},
        "wrong": pytest.approx({"recall@2": 1.0, "mrr@2": 0.5, "ndcg@2": 1 / np.log2(3), "map@2": 0.5}),
    }
    assert found.estimates["mrr@2"].mean == pytest.approx(2.5 / 3)
    assert (found.items, found.exact, found.lost_queries, found.points_at) == (3, None, (), None)
    assert 0 < found.latency["p50_ms"] <= found.latency["p95_ms"]
    assert found.disk_bytes == disk_bytes(index.path) > 0
    assert task.nothing_relevant == ("nothing",)
    json.dumps(found.as_dict())


def test_names_are_found_by_the_synced_folder_by_root_and_by_the_qrels_folder(index, task, data, photos):
    names = item_names(index, task)
    assert names.item_of["deep/blue.png"] == str(photos / "deep" / "blue.png")
    assert item_names(index, task, [photos.parent]).item_of == {}
    write_trec_qrels(photos / "deep" / "qrels", {"text": {"blue.png": 1}})
    beside = load_task(photos / "deep" / "qrels", data / "queries.jsonl")
    assert item_names(index, beside).item_of == {"blue.png": str(photos / "deep" / "blue.png")}


def test_a_file_that_was_synced_by_itself_is_named_relative_to_its_folder(tmp_path, photos, colours, task):
    with Index.create_or_open(tmp_path / "one") as index:
        index.sync([photos / "red.png"], colours)
        assert item_names(index, task).item_of == {"red.png": str(photos / "red.png")}
        found = evaluate(index, task, colours)
    assert found.lost_queries == ("picture", "wrong")
    assert found.lost_items == 2
    assert found.estimates["recall@10"].mean == pytest.approx(1 / 3)


def test_no_judged_item_in_the_index_is_an_error(index, task, colours, tmp_path):
    says = r"qrels name 'deep/blue.png', the index holds '.*/photos/deep/blue.png'; .* --root FOLDER"
    with pytest.raises(RetrievalError, match=says):
        evaluate(index, task, colours, roots=[tmp_path])


def test_a_saved_run_scores_the_same_and_another_encoder_does_not(
    index, task, grey, colours, photos, tmp_path
):
    found = evaluate(index, task, colours)
    write_run(tmp_path / "run", found.run, "colour")
    again = measure_run(tmp_path / "run", task, item_names(index, task))
    assert again.estimates == found.estimates
    assert {d.p for d in differences(found, again).values()} == {1.0}
    backwards = {query: dict(reversed(list(own.items()))) for query, own in found.run.items()}
    write_run(tmp_path / "backwards", backwards, "back")
    other = measure_run(tmp_path / "backwards", task, item_names(index, task))
    assert differences(found, other)["ndcg@10"].mean > 0.2


def test_a_run_may_name_items_as_the_index_does(index, task, colours, photos, tmp_path):
    (tmp_path / "run").write_text(f"text Q0 {photos}/red.png 1 0.5 t\n")
    found = measure_run(tmp_path / "run", task, item_names(index, task))
    assert found.scores.by_query()["text"]["recall@10"] == 1.0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("other Q0 red.png 1 1 t", "none of the queries .* 'other', theirs 'text'"),
        ("text Q0 x 1 1 t", "no judged item"),
    ],
)
def test_a_run_of_something_else_is_refused(index, task, tmp_path, line, says):
    (tmp_path / "run").write_text(line)
    with pytest.raises(RetrievalError, match=says):
        measure_run(tmp_path / "run", task, item_names(index, task))


class Approximate:
    """The index's engine, which says that it is approximate."""

    approximate = True

    def __init__(self, engine):
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)


def test_an_approximate_engine_is_measured_against_exact(index, task, colours):
    class Erring(Approximate):
        """Its approximate search loses the best hit."""

        def search(self, name, query, k, where=None, *, exact=True):
            found = self.engine.search(name, query, k + (not exact), where)
            return found if exact else found[1:]

    index.engine = Erring(index.engine)
    found = evaluate(index, task, colours, k=2)
    assert found.exact["recall"] == pytest.approx(1 / 2)
    assert found.exact["p50_ms"] > 0 and found.exact["exact_p50_ms"] > 0
    assert found.scores.by_query()["text"]["recall@2"] == 0.0


class Both:
    """Something that is searched by text and image at once, and takes 5 ms longer for each new query."""

    def __init__(self):
        self.asked = []

    def search(self, text=None, image=None, *, k=10):
        self.asked.append((text, image.size if image is not None else None, k))
        if text == "bad":
            raise RetrievalUsageError("this text is bad")
        return [Hit("b", 0.5, {}), Hit("a", 0.5, {})]


def test_queries_of_both_kinds_reach_the_search(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "q.png")
    both, steps = Both(), []
    queries = [Query("1", "like this but red", tmp_path / "q.png"), Query("2", "red")]
    found = search_all(both, queries, 7, lambda *step: steps.append(step))
    assert both.asked == [("like this but red", (6, 4), 7)] * 2 + [("red", None, 7)]
    assert found.run == {"1": {"b": 0.5, "a": 0.5}, "2": {"b": 0.5, "a": 0.5}}
    assert list(found.run["1"]) == ["b", "a"]
    assert len(found.milliseconds_Q) == 2 and steps == [(1, 2), (2, 2)]


def test_a_query_that_fails_is_named():
    with pytest.raises(RetrievalError, match="query 'q7': this text is bad"):
        search_all(Both(), [Query("q7", "bad")], 3)


def test_a_task_whose_files_do_not_fit(data, tmp_path):
    qrels = data / "qrels" / "test.tsv"
    write_queries(tmp_path / "few.jsonl", [Query("text", "red")])
    says = r"few.jsonl lacks 2 of the 3 queries of .*test.tsv, the first is 'picture'"
    with pytest.raises(RetrievalError, match=says):
        load_task(qrels, tmp_path / "few.jsonl")
    write_qrels(qrels, {"text": {"red.png": 0}})
    with pytest.raises(RetrievalError, match="no grade is above 0"):
        load_task(qrels)
    (data / "queries.jsonl").unlink()
    with pytest.raises(RetrievalUsageError, match=r"no queries.jsonl is beside .* --queries FILE"):
        load_task(qrels)


def test_a_corpus_says_which_image_an_id_is(index, data, photos, colours, tmp_path):
    lines = [{"_id": "7", "image": "photos/red.png"}, {"_id": "8", "image": str(photos / "green.png")}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_qrels(data / "qrels" / "ids.tsv", {"text": {"7": 1}, "wrong": {"8": 1}})
    task = load_task(data / "qrels" / "ids.tsv", corpus=tmp_path / "corpus.jsonl")
    found = evaluate(index, task, colours, k=1)
    assert found.estimates["recall@1"].mean == 1.0
    assert found.run == {
        "text": {"7": pytest.approx(1, abs=0.01)},
        "wrong": {"8": pytest.approx(1, abs=0.01)},
    }


def test_measuring_imports_no_engine_and_no_torch(python):
    program = (
        "import sys, vlmkit_retrieval.eval;"
        "print([m for m in ('torch', 'vlmkit', 'qdrant_edge', 'qdrant_client', 'scipy') if m in sys.modules])"
    )
    output, errors = python(program).communicate(timeout=60)
    assert (output.strip(), errors) == ("[]", "")


@pytest.fixture
def captioned(index, photos, colours):
    """The index with BM25 as well; the blue photo's caption has a word that no colour is."""
    (photos / "deep" / "blue.txt").write_text("a sapphire")
    (photos / "red.txt").write_text("a ruby")
    encoders = [colours, Bm25Terms()]
    index.sync([photos], encoders)
    return index, encoders


def test_all_lists_are_fused_as_a_search_does(captioned, data, photos, colours):
    index, encoders = captioned
    write_qrels(data / "qrels" / "words.tsv", {"text": {"deep/blue.png": 1}})
    write_queries(data / "words.jsonl", [Query("text", "a red sapphire")])
    task = load_task(data / "qrels" / "words.tsv", data / "words.jsonl")
    found = evaluate(index, task, encoders, k=3)
    hits = index.search("a red sapphire", embedder=encoders, k=3)
    names = item_names(index, task)
    assert list(found.run["text"].values()) == [hit.score for hit in hits]
    assert found.run == names.rename({"text": {hit.id: hit.score for hit in hits}})
    assert found.lists == {"colour:text": 1.0, "bm25:text": 1.0}
    words = evaluate(index, task, encoders, k=3, options=SearchOptions(weights={"bm25": 9.0}))
    pixels = evaluate(index, task, encoders, k=3, options=SearchOptions(weights={"bm25": 0.0}))
    assert words.lists["bm25:text"] == 9.0 and pixels.as_dict()["lists"]["bm25:text"] == 0.0
    assert words.estimates["mrr@3"].mean == 1.0
    assert pixels.run == evaluate(index, task, colours, k=3).run
    assert pixels.estimates["mrr@3"].mean < 1.0
    assert differences(words, pixels)["mrr@3"].mean > 0


def test_a_weight_counts_for_the_queries_that_ask_its_list(captioned, task):
    index, encoders = captioned
    options = SearchOptions(weights={"bm25": 2.0, "colour:image": 3.0})
    found = evaluate(index, task, encoders, options=options)
    assert found.lists == {"colour:text": 1.0, "bm25:text": 2.0, "colour:image": 3.0}
    assert found.run["picture"] == evaluate(index, task, encoders).run["picture"]  # of one list
    with pytest.raises(RetrievalUsageError, match=r"'word'; lists of this query: colour:text, bm25:text"):
        evaluate(index, task, encoders, options=SearchOptions(weights={"word": 2.0}))
    with pytest.raises(RetrievalError, match="query 'picture': every list has weight 0"):
        evaluate(index, task, encoders, options=SearchOptions(weights={"colour:image": 0.0}))


def test_every_approximate_space_that_is_asked_is_measured(captioned, task):
    index, encoders = captioned
    asked = []

    class Recording(Approximate):
        """Notes which spaces are asked so."""

        def search(self, name, query, k, where=None, *, exact=True):
            asked.extend([name] * (not exact and np.shape(query) == (3,)))
            return self.engine.search(name, query, k, where)

    index.engine = Recording(index.engine)
    assert evaluate(index, task, encoders).exact["recall"] == 1.0
    assert set(asked) == {"colour"}
    words = replace(task, queries=task.queries[:1], qrels={"text": task.qrels["text"]})
    assert evaluate(index, words, encoders[1]).exact is None
