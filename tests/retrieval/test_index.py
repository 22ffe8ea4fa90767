from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from vlmkit_retrieval.copy import copy_index
from vlmkit_retrieval.errors import IndexLockedError, RetrievalError, RetrievalUsageError
from vlmkit_retrieval.index import Index


@pytest.fixture
def path(tmp_path):
    return tmp_path / "photos.idx"


@pytest.fixture
def filled(path, photos, colours):
    with Index.create_or_open(path) as index:
        index.sync([photos], colours, reference="runs/colour")
    return path


def names(hits) -> list[str]:
    return [os.path.basename(hit.payload["path"]) for hit in hits]


def test_search_by_text_and_by_image(filled, colours):
    with Index.open(filled) as index:
        assert names(index.search("a green thing", embedder=colours, k=1)) == ["green.png"]
        blueish = Image.new("RGB", (4, 4), (20, 0, 200))
        hits = index.search(image=blueish, embedder=colours)
        assert names(hits)[0] == "blue.png"
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_search_needs_exactly_one_query(filled, colours):
    with Index.open(filled) as index:
        for query in ({}, {"text": "red", "image": Image.new("RGB", (2, 2))}):
            with pytest.raises(RetrievalUsageError, match="exactly one"):
                index.search(**query, embedder=colours)


def test_another_fingerprint_of_the_same_name_is_refused(filled, photos, colours):
    colours.fingerprint = "mean-rgb-2"
    stored_given_advice = (
        r"mean-rgb-1 from runs/colour, given .* mean-rgb-2; use the stored one, or sync into a new"
    )
    with Index.open(filled) as index:
        with pytest.raises(RetrievalError, match=stored_given_advice):
            index.sync([photos], colours)
        with pytest.raises(
            RetrievalError, match=r"not filled by encoder 'colour'.*it has: colour fingerprint"
        ):
            index.search("red", embedder=colours)
        index.add_encoder(colours, name="colour-2")
        assert index.sync([photos], colours).embedded == 3
        assert index.require_encoder(colours) == "colour-2"


def test_text_for_an_encoder_without_text_names_those_that_have_it(filled, photos, grey):
    with Index.open(filled) as index:
        index.sync([photos], grey)
        assert len(index.search(image=Image.new("RGB", (2, 2)), embedder=grey)) == 3
        with pytest.raises(RetrievalError, match=r"'grey' embeds images only.*in this index: colour"):
            index.search("red", embedder=grey)


def test_the_manifest_remembers_and_moves_a_reference(filled, photos, colours):
    with Index.open(filled) as index:
        assert index.encoder_references() == ["runs/colour"]
        index.sync([photos], colours)
        index.sync([photos], colours, reference="moved/colour")
    with Index.open(filled) as index:
        info = index.info()
    assert info["encoders"]["colour"] == {
        "fingerprint": "mean-rgb-1",
        "dim": 3,
        "reference": "moved/colour",
        "text": True,
    }
    assert (info["items"], info["roots"]) == (3, [str(photos)])
    json.dumps(info)


def test_one_at_a_time_and_free_again_after_close(filled):
    with Index.open(filled), pytest.raises(IndexLockedError, match="already open in this process"):
        Index.open(filled)
    Index.open(filled).close()


def test_an_index_that_is_dropped_lets_go_of_its_lock(filled):
    index = Index.open(filled)
    del index
    Index.open(filled).close()


def test_a_closed_index_says_so(filled, colours):
    index = Index.open(filled)
    index.close()
    index.close()
    with pytest.raises(RetrievalError, match="is closed"):
        index.search("red", embedder=colours)


def test_what_is_no_index_is_not_made_one(tmp_path, photos):
    with pytest.raises(RetrievalError, match="photos is not an index"):
        Index.open(photos)
    with pytest.raises(RetrievalError, match="exists and is not an index"):
        Index.create_or_open(photos)
    with pytest.raises(RetrievalError, match="is not an index"):
        Index.open(tmp_path / "nowhere")
    assert not (photos / "vlmkit-index.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 99}', "has schema 99"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
    ],
)
def test_a_manifest_that_is_newer_or_damaged(filled, content, message):
    (filled / "vlmkit-index.json").write_text(content)
    with pytest.raises(RetrievalError, match=message):
        Index.open(filled)


def test_an_index_stays_with_its_engine(filled, path):
    with pytest.raises(RetrievalUsageError, match="stores its points in engine, not :memory:"):
        Index.create_or_open(filled, engine=":memory:")
    with pytest.raises(RetrievalUsageError, match="no engine for ftp://"):
        Index.create_or_open(path.with_name("new.idx"), engine="ftp://host")
    assert not path.with_name("new.idx").exists()


def test_a_copy_answers_like_the_original(filled, tmp_path, colours, photos):
    assert copy_index(filled, tmp_path / "copy.idx") == 3
    with Index.open(filled) as old, Index.open(tmp_path / "copy.idx") as new:
        assert new.search("red", embedder=colours) == old.search("red", embedder=colours)
        assert new.sync([photos], colours).unchanged == 3
    with pytest.raises(RetrievalError, match="is an index with content"):
        copy_index(filled, tmp_path / "copy.idx")
