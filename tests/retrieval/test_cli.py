"""`vlmkit index` and `vlmkit search` with a fake encoder."""

from __future__ import annotations

import pytest

from vlmkit.cli import main
from vlmkit_retrieval.index import Index


@pytest.fixture(autouse=True)
def fake_encoder(monkeypatch, colours):
    monkeypatch.setattr("vlmkit.embedders.load_encoder", lambda reference: colours)


@pytest.fixture
def filled(tmp_path, photos):
    assert main(["index", "sync", str(tmp_path / "i"), str(photos), "--encoder", str(photos)]) == 0
    return tmp_path / "i"


@pytest.mark.parametrize("verb", ["sync", "copy"])
def test_a_url_is_no_directory(filled, tmp_path, photos, capsys, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    url = "http://127.0.0.1:1/c"
    words = {"sync": [url, str(photos), "--encoder", "e"], "copy": [str(filled), url]}[verb]
    assert main(["index", verb, *words]) == 2
    assert f"--engine {url}" in capsys.readouterr().err
    assert not (tmp_path / "http:").exists()


@pytest.mark.parametrize("engine", [":memory:", "photos"])
def test_an_engine_is_a_url(filled, tmp_path, capsys, engine):
    assert main(["index", "copy", str(filled), str(tmp_path / "new"), "--engine", engine]) == 2
    assert "is no URL" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_index_may_be_kept_by_local_mode(filled, tmp_path, capsys):
    assert main(["index", "copy", str(filled), str(tmp_path / "new"), "--engine", "local:engine"]) == 0
    assert main(["index", "info", str(tmp_path / "new")]) == 0
    assert "engine: local:engine\nitems: 3" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["sync", "copy"])
def test_the_engine_reaches_the_index(filled, tmp_path, photos, capsys, verb):
    new, url = str(tmp_path / "new"), "http://127.0.0.1:1/c"
    words = {"sync": [new, str(photos), "--encoder", "e"], "copy": [str(filled), new]}[verb]
    assert main(["index", verb, *words, "--engine", url]) == 1
    assert url in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_first_sync_that_is_refused_leaves_nothing(tmp_path, capsys):
    (tmp_path / "hollow").mkdir()
    assert main(["index", "sync", str(tmp_path / "i"), str(tmp_path / "hollow"), "--encoder", "e"]) == 1
    assert "has no images" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


def test_an_encoder_that_is_gone_is_named(filled, photos, capsys):
    with Index.open(filled) as index:
        [reference] = index.encoder_references()
    photos.rename(photos.with_name("moved"))
    assert main(["search", str(filled), "red"]) == 2
    err = capsys.readouterr().err
    assert f"remembers the encoder {reference}, which is gone; give --encoder RUN" in err
    assert main(["search", str(filled), "red", "--encoder", str(photos.with_name("moved"))]) == 0


def test_an_empty_query_is_refused(filled, capsys):
    assert main(["search", str(filled), ""]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
