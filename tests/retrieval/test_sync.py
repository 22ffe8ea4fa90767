from __future__ import annotations

import os
import shutil

import pytest

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.index import Index


def export(index) -> list:
    """Everything an index stores, comparable bit by bit."""
    points = index.engine.scroll()
    return [(p.id, {name: v.tobytes() for name, v in p.vectors.items()}, dict(p.payload)) for p in points]


def counts(report) -> dict[str, int]:
    names = ("added", "changed", "removed", "unchanged", "embedded")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def test_the_second_run_encodes_and_writes_nothing(index, photos, colours, monkeypatch):
    assert counts(index.sync([photos], colours)) == {"added": 3, "embedded": 3}
    before, manifest = export(index), (index.path / "vlmkit-index.json").stat()
    monkeypatch.setattr(index.engine, "upsert", None)
    monkeypatch.setattr("vlmkit_retrieval.sources.images.read_file", None)
    assert counts(index.sync([photos], colours)) == {"unchanged": 3}
    assert export(index) == before
    assert (index.path / "vlmkit-index.json").stat().st_mtime_ns == manifest.st_mtime_ns
    assert colours.batches == [1, 1, 1]


def test_added_changed_and_removed_files(index, photos, colours, save_image):
    index.sync([photos], colours)
    save_image(photos / "white.png", "white")
    save_image(photos / "red.png", (200, 10, 10), size=(9, 9))
    (photos / "green.png").unlink()
    report = index.sync([photos], colours)
    assert counts(report) == {"added": 1, "changed": 1, "removed": 1, "unchanged": 1, "embedded": 2}
    assert str(report).startswith("1 added, 1 changed, 1 removed, 1 unchanged, 0 unreadable")
    assert [os.path.basename(id) for id in index.engine.ids()] == ["blue.png", "red.png", "white.png"]


def test_a_rename_and_a_copy_encode_nothing(index, photos, colours):
    index.sync([photos], colours)
    (photos / "red.png").rename(photos / "scarlet.png")
    shutil.copy(photos / "green.png", photos / "lime.png")
    assert counts(index.sync([photos], colours)) == {"added": 2, "removed": 1, "unchanged": 2}


def test_a_touched_file_updates_its_payload_only(index, photos, colours):
    index.sync([photos], colours)
    os.utime(photos / "red.png", ns=(1, 1))
    assert counts(index.sync([photos], colours)) == {"unchanged": 3}
    [payload] = [p.payload for p in index.engine.scroll() if p.id.endswith("red.png")]
    assert payload["mtime_ns"] == 1


def test_equal_files_are_encoded_once(index, tmp_path, colours, save_image):
    for name in "abc":
        save_image(tmp_path / "same" / f"{name}.png", "red")
    assert counts(index.sync([tmp_path / "same"], colours)) == {"added": 3, "embedded": 1}


def test_unreadable_files_are_listed_and_the_rest_goes_on(index, photos, colours):
    index.sync([photos], colours)
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("hello")
    (photos / "red.png").write_bytes((photos / "red.png").read_bytes()[:45])
    report = index.sync([photos], colours)
    reasons = {os.path.basename(bad.path): bad.reason.split(" (")[0] for bad in report.unreadable}
    assert reasons == {
        "empty.png": "the file is empty",
        "red.png": "damaged image",
        "text.jpg": "not an image",
    }
    assert len(index.engine.ids()) == 3, "the older version of red.png stays"


def test_only_items_of_synced_roots_are_removed(index, photos, colours, save_image, tmp_path):
    save_image(tmp_path / "photos-2" / "white.png", "white")
    index.sync([photos, tmp_path / "photos-2"], colours)
    (photos / "red.png").unlink()
    (tmp_path / "photos-2" / "white.png").unlink()
    assert counts(index.sync([photos / "deep"], colours)) == {"unchanged": 1}
    assert counts(index.sync([photos], colours)) == {"removed": 1, "unchanged": 2}
    assert any(id.endswith("photos-2/white.png") for id in index.engine.ids())


@pytest.mark.parametrize("gone", [True, False])
def test_an_unmounted_root_removes_nothing_unless_allowed(index, photos, colours, gone):
    index.sync([photos], colours)
    shutil.rmtree(photos)
    if not gone:
        photos.mkdir()
    with pytest.raises(RetrievalError, match=r"holds 3 items of it.*--allow-empty"):
        index.sync([photos], colours)
    assert index.engine.count() == 3
    assert counts(index.sync([photos], colours, allow_empty=True)) == {"removed": 3}


def test_a_folder_that_is_left_empty_below_a_root_keeps_its_items(index, photos, colours):
    """What an unmounted disk leaves, unless its files have other names now."""
    index.sync([photos], colours)
    (kept,) = (photos / "deep").iterdir()
    away = photos.parent / "away.png"
    kept.rename(away)
    report = index.sync([photos], colours)
    (bad,) = report.unreadable
    assert bad.path == str(photos / "deep") and "index holds 1 items of it, which stay" in bad.reason
    assert counts(report)["unchanged"] == 2 and str(kept) in index.engine.ids()
    away.rename(photos / "other.png")
    assert counts(index.sync([photos], colours)) == {"added": 1, "removed": 1, "unchanged": 2}
    (photos / "other.png").rename(kept)
    index.sync([photos], colours)
    kept.unlink()
    assert counts(index.sync([photos], colours, allow_empty=True)) == {"removed": 1, "unchanged": 2}


@pytest.mark.parametrize(("name", "found"), [("nowhere", "does not exist"), ("hollow", "has no images")])
def test_a_first_sync_without_images_names_the_suffixes(index, tmp_path, colours, name, found):
    (tmp_path / "hollow").mkdir()
    with pytest.raises(RetrievalError, match=rf"{found} \(looked for \.png \.jpg"):
        index.sync([tmp_path / name], colours)
    assert index.manifest.roots == []


def test_two_encoders_fill_the_same_items(index, photos, colours, grey, save_image):
    index.sync([photos], colours)
    assert counts(index.sync([photos], grey)) == {"changed": 3, "embedded": 3}
    assert {tuple(sorted(p.vectors)) for p in index.engine.scroll()} == {("colour", "grey")}
    assert counts(index.sync([photos], colours)) == {"unchanged": 3}
    save_image(photos / "red.png", "white", size=(5, 5))
    (photos / "green.png").rename(photos / "lime.png")
    index.sync([photos], colours)
    vectors = {os.path.basename(p.id): sorted(p.vectors) for p in index.engine.scroll()}
    assert vectors["red.png"] == ["colour"], "the grey vector of the old content must not stay"
    assert vectors["lime.png"] == ["colour", "grey"]
    assert counts(index.sync([photos], grey)) == {"changed": 1, "unchanged": 2, "embedded": 1}


def test_progress_reaches_the_total(index, tmp_path, colours, save_image):
    for n in range(40):
        save_image(tmp_path / "many" / f"{n:02}.png", (n, 1, 1))
    seen = []
    index.sync([tmp_path / "many"], colours, lambda done, total: seen.append((done, total)))
    assert seen == [(32, 40), (40, 40)]


def test_an_encoder_of_the_wrong_shape_is_refused(index, photos, colours):
    colours.embed_dim = 7
    with pytest.raises(RetrievalError, match=r"gave vectors of shape \(1, 3\), expected is \(1, 7\)"):
        index.sync([photos], colours)


SYNC = """
import sys, time
from conftest import ColourEmbedder
from vlmkit_retrieval.index import Index

def progress(done, total):
    print(done, flush=True)
    time.sleep(0.02)

with Index.create_or_open(sys.argv[1]) as index:
    index.sync([sys.argv[2]], ColourEmbedder(), progress)
"""


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_killed_sync_is_finished_by_the_next_one(tmp_path, python, colours, save_image, chunks):
    for n in range(150):
        save_image(tmp_path / "many" / f"{n:03}.png", (n, 255 - n, 7))
    with Index.create_or_open(tmp_path / "whole.idx") as index:
        index.sync([tmp_path / "many"], colours)
        expected = export(index)
    killed = python(SYNC, tmp_path / "killed.idx", tmp_path / "many")
    for _ in range(chunks):
        assert killed.stdout.readline()
    killed.kill()
    killed.wait()
    with Index.open(tmp_path / "killed.idx") as index:
        assert 32 * chunks <= index.engine.count() < 150
        assert index.sync([tmp_path / "many"], colours).unchanged >= 32 * chunks
        assert export(index) == expected
