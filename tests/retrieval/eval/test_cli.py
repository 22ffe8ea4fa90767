"""`vlmkit eval` with a fake encoder."""

from __future__ import annotations

import json

import pytest

from vlmkit.cli import main
from vlmkit_retrieval import Bm25Terms
from vlmkit_retrieval.eval import Query, read_run, write_qrels, write_queries
from vlmkit_retrieval.index import Index


@pytest.fixture(autouse=True)
def fake_encoders(monkeypatch, colours, grey):
    monkeypatch.setattr(
        "vlmkit.embedders.load_encoder", lambda name: grey if name.startswith("grey") else colours
    )


@pytest.fixture
def home(tmp_path, photos, save_image, monkeypatch, colours, grey):
    """A folder with photos, an index of each encoder, and judgements of pictures."""
    monkeypatch.chdir(tmp_path)
    for index, encoder, name in (("i", colours, "colour:x"), ("j", grey, "grey:x")):
        with Index.create_or_open(index) as made:
            made.sync([photos], encoder, reference=name)
    (tmp_path / "data").mkdir()
    # As bright as the blue photo: the grey encoder is misled.
    asked = {"red": (120, 0, 0), "green": "green"}
    queries = [
        Query(name, None, save_image(tmp_path / "data" / f"{name}.png", c)) for name, c in asked.items()
    ]
    write_queries("data/queries.jsonl", queries)
    write_qrels("data/qrels.tsv", {"red": {"red.png": 1, "gone.png": 1}, "green": {"green.png": 1}})
    return tmp_path


@pytest.fixture
def call(home, capsys):
    def run(*argv):
        code = main(["eval", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_table_with_intervals_speed_size_and_notes(call):
    code, out, _ = call("i", "--qrels", "data/qrels.tsv", "-k", "1")
    assert code == 0
    assert "i: 2 queries, 3 items" in out
    assert "recall@1  0.7500  0.5000 to 1.0000" in out
    assert "ms (p50)" in out and "MB on disk" in out and "search is exact" in out
    assert "note: 1 relevant items of the qrels are not in the index" in out


def test_json_to_stdout_and_to_a_file_say_the_same(call, home):
    _, out, _ = call("i", "--qrels", "data/qrels.tsv", "--json", "-")
    printed = json.loads(out)
    code, out, _ = call("i", "--qrels", "data/qrels.tsv", "--json", home / "report.json")
    written = json.loads((home / "report.json").read_text())
    assert code == 0 and "recall@10" in out
    assert printed["metrics"] == written["metrics"] and printed["by_query"] == written["by_query"]
    assert printed["queries"] == 2 and printed["lost_items"] == 1 and printed["exact"] is None
    assert printed["metrics"]["mrr@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_against_a_run_and_against_another_index(call, home):
    assert call("i", "--qrels", "data/qrels.tsv", "--save-run", "run.txt")[0] == 0
    assert next(iter(read_run("run.txt")["red"])) == "red.png"
    _, out, _ = call("i", "--qrels", "data/qrels.tsv", "--compare", "run.txt", "--json", "-")
    same = json.loads(out)["compare"]
    assert same["with"] == "run.txt"
    assert {d["mean"] for d in same["difference"].values()} == {0.0}
    _, out, _ = call("j", "--qrels", "data/qrels.tsv", "--compare", "i", "-k", "1", "--json", "-")
    other = json.loads(out)
    assert other["compare"]["metrics"]["recall@1"]["mean"] == 0.75
    less = other["metrics"]["recall@1"]["mean"] - 0.75
    assert other["compare"]["difference"]["recall@1"]["mean"] == pytest.approx(less) and less < 0
    code, out, _ = call("j", "--qrels", "data/qrels.tsv", "--compare", "i", "-k", "1")
    assert code == 0 and "against i" in out and "difference" in out


def test_all_lists_are_asked_or_those_that_are_named(call, home, photos, colours):
    (photos / "green.txt").write_text("a crimson thing")
    write_queries("data/words.jsonl", [Query("1", text="crimson, red")])
    write_qrels("data/words.tsv", {"1": {"green.png": 1}})
    with Index.open("i") as index:
        index.sync([photos], [colours, Bm25Terms()], reference=["colour:x", "english"])
    task = ["--qrels", "data/words.tsv", "--queries", "data/words.jsonl"]

    def report(*words):
        code, out, _ = call("i", *task, *words, "--json", "-")
        assert code == 0
        return json.loads(out)

    def rank(found):
        return 1 / found["by_query"]["1"]["mrr@10"]

    assert report()["lists"] == {"bm25:text": 1.0, "colour:text": 1.0}
    assert rank(report("--encoder", "bm25")) == 1 and rank(report("--encoder", "colour")) > 1
    assert rank(report("--weight", "bm25=9")) == 1 and rank(report("--weight", "bm25=0")) > 1
    worse = report("--encoder", "colour", "--compare", "i")["compare"]
    assert worse["metrics"] == report()["metrics"] and worse["difference"]["mrr@10"]["mean"] < 0
    code, out, _ = call("i", *task, "--weight", "bm25=9")
    assert code == 0 and "lists: bm25:text (weight 9), colour:text\n" in out
    code, _, err = call("i", "--qrels", "data/qrels.tsv", "--weight", "bm25=9")
    assert code == 2 and "a weight is set for 'bm25'; lists of this query: colour:image, colour" in err


def test_a_damaged_line_is_named(call, home):
    (home / "data" / "bad.tsv").write_text("red 0 red.png yes\n")
    code, out, err = call("i", "--qrels", "data/bad.tsv")
    assert (code, out) == (1, "")
    assert "data/bad.tsv, line 1: the grade 'yes'" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model", "--qrels", "data/qrels.tsv"], "model is a model and not an index"),
        (["data", "--qrels", "data/qrels.tsv"], "data is not an index"),
        (["i", "--qrels", "data/none.tsv"], "none.tsv is not a file"),
        (["i", "--qrels", "data/qrels.tsv", "--save-run", "no/run"], "folder of no/run does not exist"),
        (["i", "--qrels", "data/qrels.tsv", "--json", "no/json"], "folder of no/json does not exist"),
        (["i", "--qrels", "data/qrels.tsv", "--compare", "model"], "model is a model and not an index"),
        (["i", "--qrels", "data/qrels.tsv", "--compare", "none"], "none is not a file"),
    ],
)
def test_wrong_uses_are_one_line(call, home, words, says):
    (home / "model").mkdir()
    (home / "model" / "config.json").write_text("{}")
    code, out, err = call(*words)
    assert code == 2
    assert says in err.splitlines()[-1] and "Traceback" not in err and out == ""


def test_a_root_says_where_paths_begin(call, home):
    code, _, err = call("i", "--qrels", "data/qrels.tsv", "--root", "data")
    assert code == 1 and "the qrels name 'gone.png', the index holds" in err and "--root FOLDER" in err
    assert call("i", "--qrels", "data/qrels.tsv", "--root", "data", "--root", "photos")[0] == 0
