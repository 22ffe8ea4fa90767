"""Several encoders: adding or replacing one touches its vectors alone, and company never decides a vector."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from mixing import MixingImages, MixingPatches, MixingTexts, mixing

from vlmkit_retrieval.digest import digest
from vlmkit_retrieval.encoders import embeds_text
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.search import Bm25Terms
from vlmkit_retrieval.sync import SyncOptions

KINDS = SyncOptions(kinds=["images", "text"])


@pytest.fixture
def folder(tmp_path, save_image):
    for n in range(7):
        save_image(tmp_path / "files" / f"{n}.png", (9 * n, 50, 99))
        (tmp_path / "files" / f"{n}.caption").write_text(f"picture {n}")
    (tmp_path / "files" / "notes.md").write_text("# One\n\nfirst\n\n# Two\n\nsecond")
    return tmp_path / "files"


def points(index):
    return {point.id: point for point in index.engine.scroll()}


@pytest.mark.parametrize("new", [MixingTexts("text"), MixingPatches("patches"), Bm25Terms()])
def test_a_new_encoder_fills_its_space_alone(index, folder, monkeypatch, new):
    images, more = MixingImages("images"), MixingImages("more")
    terms = Bm25Terms("german") if new.name != "bm25" else MixingTexts("german")
    index.add_encoder(terms, name="words")
    index.sync([folder], [images, more, terms], options=KINDS)
    before, seen = points(index), list(images.seen)
    monkeypatch.setattr(
        index.engine, "upsert", lambda points: pytest.fail("written again") if points else None
    )
    report = index.sync([folder], [images, more, terms, new])
    assert report.embedded_by.keys() == {new.name} and report.changed > 0
    assert images.seen == seen
    for id, point in points(index).items():
        old = before[id]
        assert {**point.payload, "encoders": None} == {**old.payload, "encoders": None}
        for name, vector in old.vectors.items():
            assert vector == point.vectors[name] if name == "words" and new.name != "bm25" else True
            if isinstance(vector, np.ndarray):
                np.testing.assert_array_equal(vector, point.vectors[name])
    assert index.sync([folder], [images, new]).changed == 0


def test_texts_are_filled_in_without_reading_files(index, folder, monkeypatch):
    index.sync([folder], [MixingImages("images"), Bm25Terms()], options=KINDS)
    monkeypatch.setattr("vlmkit_retrieval.sync.work.Reader.read", None)
    assert index.sync([folder], MixingTexts("text")).embedded == 9


def test_replacing_an_encoder(index, folder):
    old, texts = MixingImages("images"), MixingTexts("text")
    index.sync([folder], [old, texts], options=KINDS)
    new = MixingImages("images", "another")
    new.embed_images = lambda images: np.full((len(images), 6), 1 / np.sqrt(6), np.float32)
    new.embed_dim = 6
    with pytest.raises(RetrievalError, match="fingerprint images-1"):
        index.sync([folder], new)
    before = points(index)
    index.forget_encoder("images")
    assert index.sync([folder], new).changed == 7 and texts.seen and len(texts.seen) == 9
    for id, point in points(index).items():
        np.testing.assert_array_equal(point.vectors["text"], before[id].vectors["text"])
        assert ("images" in point.vectors) == id.endswith(".png")
    index.forget_encoder("images")
    # The same encoder again: everything it made is still in the store.
    assert index.sync([folder], new).embedded == 0
    assert all("images" in p.vectors for p in points(index).values() if p.id.endswith(".png"))
    with pytest.raises(RetrievalUsageError, match="has no encoder 'nobody' \\(it has: images, text"):
        index.forget_encoder("nobody")


@pytest.mark.parametrize("method", ["drop_space", "set_payload"])
def test_forgetting_that_was_killed_is_finished_by_the_next_one(tmp_path, folder, monkeypatch, method):
    with Index.create_or_open(tmp_path / "i") as index:
        index.sync([folder], [MixingImages("images"), MixingPatches("patches")])
        with monkeypatch.context() as broken:
            broken.setattr(type(index.engine), method, lambda *_: (_ for _ in ()).throw(OSError("killed")))
            with pytest.raises(OSError, match="killed"):
                index.forget_encoder("patches")
    with Index.open(tmp_path / "i") as index:
        assert list(index.manifest.encoders) == list(index.engine.spaces()) == ["images"]
        assert index.manifest.dropping == []
        assert all(list(point.payload["encoders"]) == ["images"] for point in points(index).values())
        assert index.sync([folder], MixingPatches("patches")).changed == 7


def test_names_of_spaces_do_not_clash(index, folder):
    index.sync([folder], MixingPatches("p"))
    with pytest.raises(RetrievalUsageError, match="there is a space 'p-mean'"):
        index.add_encoder(MixingImages("p-mean"))
    with pytest.raises(RetrievalUsageError, match="Object is no encoder"):
        index.add_encoder(type("Object", (), {"name": "o", "fingerprint": "f"})())


def history(index, folder, save_image, batch):
    """Three syncs with edits in between; then the digest."""
    options = SyncOptions(kinds=["images", "text"], batch=batch)
    index.sync([folder], mixing(), options=options)
    save_image(folder / "0a.png", (250, 1, 1))
    (folder / "3.png").unlink()
    (folder / "4.png").rename(folder / "44.png")
    index.sync([folder], mixing(), options=options)
    (folder / "5.caption").unlink()
    save_image(folder / "1.png", (1, 1, 1), size=(3, 3))
    os.utime(folder / "2.png", ns=(5, 5))
    index.sync([folder], mixing()[:1], options=options)
    index.sync([folder], mixing(), options=options)
    return digest(index.engine)


def test_a_vector_depends_on_its_content_alone(tmp_path, index, folder, save_image):
    edited = history(index, folder, save_image, batch=1)
    with Index.create_or_open(tmp_path / "fresh") as fresh:
        fresh.sync([folder], mixing(), options=KINDS)
        assert digest(fresh.engine) == edited
    (tmp_path / "i" / "features.sqlite").unlink()
    with Index.create_or_open(tmp_path / "fresh-2") as fresh:
        fresh.sync([folder / "notes.md", folder], mixing(), options=KINDS)
        assert digest(fresh.engine) == edited


def test_the_test_above_can_fail(tmp_path, index, folder, save_image):
    """With batches, company shows: the encoders of these tests tell it."""
    edited = history(index, folder, save_image, batch=4)
    with Index.create_or_open(tmp_path / "fresh") as fresh:
        fresh.sync([folder], mixing(), options=SyncOptions(kinds=["images", "text"], batch=4))
        assert digest(fresh.engine) != edited


def test_batches_are_of_the_stated_size(index, folder, colours):
    index.sync([folder], colours, options=SyncOptions(batch=3))
    assert colours.batches == [3, 3, 1]


def as_schema_1(path):
    """What the version before this one wrote: no kinds, no rule, names of encoders alone."""
    with Index.open(path) as index:
        old = [p for p in index.engine.scroll() if p.id.endswith(".png")]
        keys = ("path", "sha256", "size", "mtime_ns")
        payloads = {p.id: {key: p.payload[key] for key in keys} for p in old}
        index.engine.delete(index.engine.ids())
        index.engine.upsert(
            [type(p)(p.id, p.vectors, payloads[p.id] | {"encoders": sorted(p.vectors)}) for p in old]
        )
        manifest = json.loads((path / "vlmkit-index.json").read_text())
    entries = {
        name: {key: value for key, value in entry.items() if key != "kind"}
        for name, entry in manifest["encoders"].items()
    }
    stored = {"schema": 1, "engine": "engine", "roots": manifest["roots"], "encoders": entries}
    (path / "vlmkit-index.json").write_text(json.dumps(stored))


def test_an_index_of_schema_1_opens_and_is_brought_up_to_date(tmp_path, folder):
    for caption in folder.glob("*.caption"):
        caption.unlink()
    images = MixingImages("images")
    with Index.create_or_open(tmp_path / "i") as index:
        index.sync([folder], images)
        expected = digest(index.engine)
    as_schema_1(tmp_path / "i")
    before = (tmp_path / "i" / "vlmkit-index.json").read_text()
    (tmp_path / "i" / "features.sqlite").unlink()
    with Index.open(tmp_path / "i") as index:
        assert index.info()["encoders"]["images"]["kind"] == "image" and index.manifest.kinds == ["images"]
        assert (tmp_path / "i" / "vlmkit-index.json").read_text() == before, "looking changes nothing"
        report = index.sync([folder], images)
        assert (report.unchanged, report.embedded) == (7, 0)
        assert digest(index.engine) == expected


def test_every_kind_is_searched(index, folder):
    encoders = [*mixing(), Bm25Terms()]
    index.sync([folder], encoders, options=KINDS)
    first = index.search("second", embedder=encoders, k=1)[0]
    assert {share.list for share in first.explanation.shares} == {"text:text", "bm25:text"}
    assert first.id.endswith("notes.md#chunk=2")
    from PIL import Image

    found = index.search(image=Image.open(folder / "3.png"), embedder=encoders, k=1)[0]
    assert {share.list for share in found.explanation.shares} == {"images:image", "patches:image"}
    assert found.id.endswith("3.png")
    assert {name: entry["items"] for name, entry in index.info()["encoders"].items()} == {
        "images": 7,
        "text": 9,
        "patches": 7,
        "bm25": 9,
    }


def test_an_image_encoder_says_itself_whether_it_embeds_texts(colours, grey):
    assert embeds_text(colours) and not embeds_text(grey)
