"""Items of several kinds: a file may have many, and loses those that it has no more."""

from __future__ import annotations

import os

import numpy as np
import pdfs
import pytest
from mixing import MixingImages, MixingPatches, MixingTexts

from vlmkit_retrieval.copy import copy_index
from vlmkit_retrieval.digest import digest
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.search import Bm25Terms
from vlmkit_retrieval.sources import Rules
from vlmkit_retrieval.sync import SyncOptions
from vlmkit_retrieval.types import Point

ALL = SyncOptions(kinds=["images", "text", "pdf"])


@pytest.fixture
def shelf(tmp_path, save_image):
    """Two images, one of them with a caption, a text of two sections, a file of three pages."""
    folder = tmp_path / "shelf"
    save_image(folder / "red.png", "red")
    save_image(folder / "deep" / "blue.png", "blue")
    (folder / "red.txt").write_text("a red square")
    (folder / "notes.md").write_text("# One\n\nfirst words\n\n# Two\n\nsecond words")
    (folder / "manual.pdf").write_bytes(pdfs.pdf("Install it", "Use it", "Remove it"))
    return folder


@pytest.fixture
def encoders():
    return [MixingImages("images"), MixingTexts("text"), MixingPatches("patches"), Bm25Terms()]


def vectors(index):
    return {os.path.basename(point.id): sorted(point.vectors) for point in index.engine.scroll()}


def counts(report):
    return (report.added, report.changed, report.removed, report.unchanged, report.embedded)


def test_each_item_has_the_vectors_it_can_have(index, shelf, encoders):
    report = index.sync([shelf], encoders, options=ALL)
    assert counts(report) == (7, 0, 0, 0, 2 * 5 + 6)
    assert dict(report.embedded_by) == {"images": 5, "patches": 5, "text": 6, "bm25": 6}
    assert str(report).endswith("0 unreadable; 10 images encoded, 6 texts")
    pixels = ["images", "patches", "patches-mean"]
    assert vectors(index) == {
        "blue.png": pixels,
        "red.png": sorted([*pixels, "text", "bm25"]),
        **{f"manual.pdf#page={n}": sorted([*pixels, "text", "bm25"]) for n in (1, 2, 3)},
        **{f"notes.md#chunk={n}": ["bm25", "text"] for n in (1, 2)},
    }
    [page] = [p for p in index.engine.scroll() if p.id.endswith("page=2")]
    assert (page.payload["kind"], page.payload["text"], page.payload["pages"]) == ("page", "Use it", 3)
    assert counts(index.sync([shelf], encoders)) == (0, 0, 0, 7, 0)
    assert index.manifest.kinds == ["images", "text", "pdf"]


def test_items_that_a_file_has_no_more_are_removed(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    (shelf / "notes.md").write_text("# One\n\nfirst words")
    (shelf / "manual.pdf").write_bytes(pdfs.pdf("Install it", "Remove it"))
    # The pages' pictures are of another file now, the texts are known.
    assert counts(index.sync([shelf], encoders)) == (0, 2, 2, 3, 2 * 2)
    assert {"notes.md#chunk=2", "manual.pdf#page=3"}.isdisjoint(vectors(index))


def test_a_caption_that_changes_leaves_the_vectors_of_the_pixels(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    before = index.engine.retrieve([str(shelf / "red.png")], with_vectors=True)[str(shelf / "red.png")]
    (shelf / "red.txt").write_text("another square")
    assert dict(index.sync([shelf], encoders).embedded_by) == {"text": 1, "bm25": 1}
    after = index.engine.retrieve([before.id], with_vectors=True)[before.id]
    np.testing.assert_array_equal(after.vectors["images"], before.vectors["images"])
    np.testing.assert_array_equal(after.vectors["patches"], before.vectors["patches"])
    assert (after.vectors["text"] != before.vectors["text"]).any()
    assert after.payload["text"] == "another square"
    (shelf / "red.txt").unlink()
    assert index.sync([shelf], encoders).changed == 1
    assert vectors(index)["red.png"] == ["images", "patches", "patches-mean"]


def test_refused_parts_are_told_in_every_run_and_older_ones_go(index, shelf, encoders, monkeypatch):
    index.sync([shelf], encoders, options=ALL)
    (shelf / "manual.pdf").write_bytes(pdfs.pdf("Install it", "Use it", "x" * 60))
    monkeypatch.setattr("vlmkit_retrieval.sources.pdf.MAX_TEXT", 50)
    for removed in (1, 0):
        report = index.sync([shelf], encoders)
        [bad] = report.unreadable
        assert bad.reason.startswith("page 3: 60 characters of text") and report.removed == removed
    assert {"manual.pdf#page=1", "manual.pdf#page=2"} == {n for n in vectors(index) if "manual" in n}
    (shelf / "manual.pdf").write_bytes(b"%PDF-1.7 broken")
    [bad] = index.sync([shelf], encoders).unreadable
    assert "cut off" in bad.reason and "manual.pdf#page=1" in vectors(index), "of a whole file they stay"


def test_pixels_that_cannot_be_decoded_refuse_the_item(index, shelf, encoders, save_image):
    index.sync([shelf], encoders, options=ALL)
    data = save_image(shelf / "big.png", (3, 7, 9), size=(300, 300)).read_bytes()
    (shelf / "big.png").write_bytes(data[:80])
    (shelf / "twin.png").write_bytes(data[:80])
    (shelf / "red.png").write_bytes(data[:81])
    report = index.sync([shelf], encoders)
    assert sorted(os.path.basename(bad.path) for bad in report.unreadable) == [
        "big.png",
        "red.png",
        "twin.png",
    ]
    assert "big.png" not in vectors(index) and "text" in vectors(index)["red.png"]


def test_another_rule_makes_items_out_of_date(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    finer = SyncOptions(rules=Rules(chunk=25, overlap=0))
    (shelf / "notes.md").write_text("# One\n\nfirst words\n\nsecond words of it\n\nthird ones")
    index.sync([shelf], encoders)
    report = index.sync([shelf], encoders, options=finer)
    assert report.added == 2 and report.unchanged == 2 + 3
    assert counts(index.sync([shelf], encoders, options=finer)) == (0, 0, 0, 2 + 3 + 3, 0)


def test_a_renamed_folder_embeds_nothing(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    (shelf / "deep").rename(shelf / "deeper")
    (shelf / "manual.pdf").rename(shelf / "deeper" / "m.pdf")
    assert counts(index.sync([shelf], encoders)) == (4, 0, 4, 3, 0)
    shelf.rename(shelf.with_name("rack"))
    assert counts(index.sync([shelf.with_name("rack")], encoders)) == (7, 0, 0, 0, 0)


def test_a_sync_of_fewer_kinds_leaves_the_others_alone(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    (shelf / "manual.pdf").unlink()
    assert counts(index.sync([shelf], encoders, options=SyncOptions(kinds=["images"]))) == (0, 0, 0, 2, 0)
    assert counts(index.sync([shelf], encoders)) == (0, 0, 3, 4, 0)


def test_what_others_stored_with_an_item_stays(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    red = str(shelf / "red.png")
    index.engine.set_payload({red: {"album": "summer"}})
    (shelf / "red.txt").write_text("another square")
    os.utime(shelf / "red.png", ns=(1, 1))
    index.sync([shelf], encoders)
    assert index.engine.retrieve([red])[red].payload["album"] == "summer"
    index.engine.upsert([])
    index.engine.delete([str(shelf / "deep" / "blue.png")])
    assert index.sync([shelf], encoders).added == 1, "an item that somebody deleted comes back"


def test_items_that_no_sync_made_are_left_alone(index, shelf, encoders):
    index.sync([shelf], encoders, options=ALL)
    other = Point("added", {"images": np.ones(4)}, {"path": str(shelf / "gone.png"), "sha256": "0"})
    index.engine.upsert([other])
    assert counts(index.sync([shelf], encoders)) == (0, 0, 0, 7, 0)
    assert "added" in vectors(index)


def test_a_copy_knows_the_kinds(index, shelf, encoders, tmp_path):
    index.sync([shelf], encoders, options=ALL)
    before = digest(index.engine)
    index.close()
    copy_index(tmp_path / "i", tmp_path / "copy")
    with Index.open(tmp_path / "copy") as copied:
        assert digest(copied.engine) == before
        assert counts(copied.sync([shelf], encoders)) == (0, 0, 0, 7, 0)


def test_overlapping_roots_and_the_same_content_twice(index, shelf, encoders):
    (shelf / "copy.png").write_bytes((shelf / "red.png").read_bytes())
    report = index.sync([shelf, shelf / "deep", shelf / "red.png"], encoders, options=ALL)
    assert report.added == 8 and report.embedded_by["images"] == 5
    assert counts(index.sync([shelf / "deep"], encoders)) == (0, 0, 0, 1, 0)


@pytest.mark.parametrize("instead", [[], ["readme.png"]])
def test_a_root_that_lost_everything_is_refused(index, shelf, encoders, save_image, instead):
    """Also where other files are there now: a disk below the root may not be mounted."""
    for name in ("red.png", "red.txt", "notes.md", "manual.pdf"):
        (shelf / name).rename(shelf / "deep" / name)
    index.sync([shelf], encoders, options=ALL)
    before = digest(index.engine)
    (shelf / "deep").rename(shelf.with_name("unmounted"))
    for name in instead:
        save_image(shelf / name, "white")
    with pytest.raises(RetrievalError, match=r"7 items .*--allow-empty"):
        index.sync([shelf], encoders)
    assert digest(index.engine) == before
    shelf.with_name("unmounted").rename(shelf / "renamed")  # under another name it is no loss
    assert index.sync([shelf], encoders).removed == 7
    (shelf / "renamed").rename(shelf.with_name("unmounted"))
    if instead:
        (shelf / "readme.png").rename(shelf / "other.png")
        os.utime(shelf / "other.png", ns=(1, 1))
    assert index.sync([shelf], encoders, allow_empty=True).removed == 7 + len(instead)


def test_files_of_text_need_an_encoder_of_texts(index, shelf):
    with pytest.raises(RetrievalUsageError, match="'text' need an encoder of texts"):
        index.sync([shelf], MixingImages("images"), options=ALL)
    with pytest.raises(RetrievalUsageError, match="unknown kind of files 'video'"):
        index.sync([shelf], MixingImages("images"), options=SyncOptions(kinds=["video"]))
    with pytest.raises(RetrievalUsageError, match="batch is 0"):
        SyncOptions(batch=0)
    assert index.engine.count() == 0


def test_progress_and_what_was_encoded(index, shelf, encoders):
    seen, encoded = [], []
    index.sync(
        [shelf],
        encoders,
        lambda *done: seen.append(done),
        options=ALL,
        encoded=lambda *what: encoded.append(what),
    )
    assert seen == [(4, 4)]
    assert sorted(encoded)[:3] == [("bm25", 1), ("bm25", 2), ("bm25", 3)]
