"""`vlmkit index optimize`: what it prints, when it asks, and what its exit code says."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import pytest

from vlmkit.cli import main
from vlmkit_retrieval import Index
from vlmkit_retrieval.engines.holes import copy_folder


@pytest.fixture
def filled(template, tmp_path):
    """An index with the points of `template`."""
    Index.create_or_open(tmp_path / "i").close()
    copy_folder(template, tmp_path / "i" / "engine")
    yield str(tmp_path / "i")
    shutil.rmtree(tmp_path)


@pytest.fixture
def measured(report, monkeypatch):
    """Commands measure what the session's index was measured to be, and swap nothing in."""
    calls = []

    def known(engine, mode, spaces, demands, confirm, progress):
        calls.append((mode.name, spaces, demands))
        return replace(report, swapped=confirm(report))

    monkeypatch.setattr("vlmkit_retrieval.optimize.optimize", known)
    return calls


def test_the_whole_way(filled, capsys):
    assert main(["index", "info", filled]) == 0
    assert "optimized" not in capsys.readouterr().out
    assert main(["index", "optimize", filled, "--int8", "--space", "v", "--queries", "20", "--yes"]) == 0
    out, err = capsys.readouterr()
    assert "v: int8 of 2,400 items, asked 20 of its own vectors" in out
    assert "exact" in out and "compared again: k x 4" in out
    assert err.splitlines()[0] == "copying the index" and "is optimized: searches use it" in err
    assert main(["index", "info", filled, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["optimized"]["spaces"]["v"]["figures"]["recall"] >= 0.95 and info["advice"] is None
    assert main(["index", "info", filled]) == 0
    assert "optimized v: int8, compared again: k x 1; measured on 2,400 items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ([], "hnsw"),
        (["--hnsw"], "hnsw"),
        (["--int8"], "int8"),
        (["--hnsw", "--int8"], "hnsw+int8"),
        (["--turboquant", "--hnsw"], "hnsw+turboquant"),
    ],
)
def test_flags_name_what_is_built(filled, measured, flags, mode, capsys):
    assert main(["index", "optimize", filled, *flags, "--min-recall", "0.9", "--queries", "50"]) == 1
    [(name, spaces, demands)] = measured
    assert (name, spaces, demands.min_recall, demands.queries) == (mode, None, 0.9, 50)
    assert "not swapped in: give --yes" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "swapped"), [("y\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_it_asks(filled, monkeypatch, report, answer, swapped, capsys):
    said = []
    monkeypatch.setattr(
        "vlmkit_retrieval.optimize.optimize",
        lambda *args: said.append(args[4](report)) or replace(report, swapped=said[-1]),
    )
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["index", "optimize", filled]) == (0 if swapped else 1)
    assert said == [swapped]
    out, err = capsys.readouterr()
    assert "swap it in? [y/N]" in err and "times less CPU than exact search" in out


def test_too_little_recall_is_said_and_changes_nothing(filled, monkeypatch, capsys, tmp_path):
    with Index.open(filled) as index:
        before = [(point.id, point.payload, point.vectors["v"].tolist()) for point in index.engine.scroll()]
    monkeypatch.setattr("vlmkit_retrieval.optimize.run.choose", lambda trials, recall: None)
    words = ["--turboquant", "--space", "v", "--queries", "20", "--min-recall", "0.99", "--yes"]
    assert main(["index", "optimize", filled, *words]) == 1
    out, err = capsys.readouterr()
    assert "turboquant" in out
    assert "nothing has changed: no setting finds 0.99 of the exact neighbours in v" in err
    with Index.open(filled) as index:
        after = [(point.id, point.payload, point.vectors["v"].tolist()) for point in index.engine.scroll()]
        assert (index.engine.approximate, after) == (False, before)
    assert not list((tmp_path / "i").glob("engine.*ing*"))


def test_an_empty_index_is_refused(tmp_path, capsys):
    Index.create_or_open(tmp_path / "i").close()
    assert main(["index", "optimize", str(tmp_path / "i")]) == 2
    assert "too few items" in capsys.readouterr().err


def test_info_and_sync_hint_where_exact_search_is_slow(filled, capsys, monkeypatch):
    monkeypatch.setattr("vlmkit_retrieval.optimize.rule.NUMBERS", 1000)
    assert main(["index", "info", filled]) == 0
    assert "exact search of v (2,400 x 32" in capsys.readouterr().out
