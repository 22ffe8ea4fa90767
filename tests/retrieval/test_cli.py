"""`vlmkit index` and `vlmkit search` with a fake encoder."""

from __future__ import annotations

import json

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
    assert "engine: local:engine (local mode of qdrant-client)\nitems: 3" in capsys.readouterr().out


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


def found(capsys, *words):
    capsys.readouterr()
    assert main(["search", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_search_prints_scores_and_why(filled, photos, capsys):
    first = found(capsys, filled, "red", "-k", "1").splitlines()
    assert len(first) == 1 and first[0].endswith("red.png")
    explained = found(
        capsys, filled, "red", "--image", photos / "deep" / "blue.png", "--explain"
    ).splitlines()
    assert len(explained) == 3 * 2  # a line a hit, and one for its list
    assert explained[1].startswith("        colour:both: rank 1, score ")
    rows = [json.loads(line) for line in found(capsys, filled, "red", "--json", "--explain").splitlines()]
    assert rows[0]["explanation"]["shares"][0]["list"] == "colour:text"


def test_a_filter_and_copies(filled, photos, capsys):
    (photos / "copy.png").write_bytes((photos / "red.png").read_bytes())
    assert main(["index", "sync", str(filled), str(photos)]) == 0
    lines = found(capsys, filled, "red", "--collapse").splitlines()
    assert len(lines) == 4 and lines[1].endswith("red.png (same content)")
    only = json.dumps({"path": str(photos / "green.png")})
    assert len(found(capsys, filled, "red", "--where", only).splitlines()) == 1
    [row] = found(capsys, filled, "red", "--collapse", "--json", "-k", "1").splitlines()
    assert json.loads(row)["duplicates"] == [str(photos / "red.png")]
    varied = found(capsys, filled, "red", "--mmr", "0.3", "-k", "2", "--explain")
    assert "copy.png" in varied and "red.png" not in varied and "mmr: cosine" in varied


def test_a_page_is_written(filled, photos, tmp_path, capsys):
    page = tmp_path / "out.html"
    out = found(capsys, filled, "red <b>", "--image", photos / "red.png", "--html", page)
    assert len(out.splitlines()) == 3
    content = page.read_text("utf-8")
    assert content.count("<article>") == 3 and content.count("data:image/png") == 4
    assert "red &lt;b&gt;" in content


REFUSED = [
    (["--where", "{album: 1}"], "is no JSON object"),
    (["--where", "[1]"], "is no JSON object"),
    (["--where", '{"$near": 1}'], "no word '$near'"),
    (["--mmr", "2"], "mmr is 2.0"),
    (["--near", "0.9"], "without collapse"),
    (["--mmr", "0.5", "--by", "dino"], "'dino'"),
    (["--html", "nowhere/out.html"], "the folder of nowhere/out.html does not exist"),
    (["-k", "0"], "k is 0"),
    (["--encoder", "dino"], "neither an encoder of index"),
]


def test_what_a_search_refuses(filled, capsys):
    capsys.readouterr()
    for words, says in REFUSED:
        assert main(["search", str(filled), "red", *words]) == 2, words
        out, err = capsys.readouterr()
        assert says in err and len(err.splitlines()) == 1 and out == ""


def test_what_no_encoder_takes_and_what_is_not_there_is_said(tmp_path, photos, capsys):
    (photos / "red.txt").write_text("a ruby")
    index = tmp_path / "words"
    assert main(["index", "sync", str(index), str(photos), "--bm25"]) == 0
    capsys.readouterr()
    assert main(["search", str(index), "--image", str(photos / "red.png")]) == 2
    err = capsys.readouterr().err
    assert "no encoder that takes images" in err and "(it has: bm25)" in err and "index sync" in err
    assert main(["search", str(index), "the"]) == 0
    assert capsys.readouterr() == ("", "nothing was found\n")


def test_every_encoder_that_takes_the_query_is_asked(
    filled, photos, tmp_path, capsys, monkeypatch, colours, grey
):
    other = tmp_path / "grey"
    other.mkdir()
    known = {str(photos): colours, str(other): grey}
    monkeypatch.setattr("vlmkit.embedders.load_encoder", known.__getitem__)
    assert main(["index", "sync", str(filled), str(photos), "--encoder", str(other)]) == 0
    by_text = found(capsys, filled, "red", "--explain")
    assert "colour:text" in by_text and "grey" not in by_text
    by_image = found(capsys, filled, "--image", photos / "red.png", "--explain")
    assert "colour:image" in by_image and "grey:image" in by_image
    named = found(capsys, filled, "--image", photos / "red.png", "--encoder", other, "--explain")
    assert "grey:image" in named and "colour" not in named


def test_two_encoders_of_one_family_are_named_apart(filled, photos, tmp_path, capsys, monkeypatch, colours):
    other = tmp_path / "lr=1"  # a folder may hold what separates a name
    other.mkdir()
    second = type(colours)(fingerprint="mean-rgb-2")
    monkeypatch.setattr("vlmkit.embedders.load_encoder", {str(photos): colours, str(other): second}.get)

    def sync(*words):
        code = main(["index", "sync", str(filled), str(photos), *words])
        return code, capsys.readouterr()

    capsys.readouterr()
    code, (_, err) = sync("--encoder", str(other))
    assert code == 1 and "encoder 'colour' is" in err and "--encoder NAME=RUN" in err
    assert sync("--encoder", f"new={other}")[0] == 0
    code, (out, _) = sync("--json")
    assert code == 0 and json.loads(out)["embedded_by"] == {}
    by_text = found(capsys, filled, "red", "--explain", "--weight", "new=2")
    assert "colour:text" in by_text and "new:text" in by_text
    for words, says in (
        (["--encoder", "new="], "new= names no encoder; give NAME=RUN"),
        (["--encoder", f"a={photos}", "--encoder", f"a={other}"], "a=... is given twice"),
        (["--encoder", f"newer={other}"], "this very encoder, under the name 'new'"),
    ):
        code, (_, err) = sync(*words)
        assert code == 2 and says in err and len(err.splitlines()) == 1
