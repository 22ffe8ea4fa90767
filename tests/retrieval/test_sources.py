from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from vlmkit_retrieval import images
from vlmkit_retrieval.errors import FileError, RetrievalUsageError
from vlmkit_retrieval.images import ImageError, as_rgb, image_size, read_file
from vlmkit_retrieval.scan import is_under, scan
from vlmkit_retrieval.sources import SOURCES, Reader, Rules, as_line, suffixes_of


def items_of(folder, kinds=("images",), **rules):
    found = scan([folder], suffixes_of(kinds))
    with Reader(found.files, kinds, Rules(**rules)) as reader:
        return [item for id in sorted(found.files) for item in reader.read(found.files[id])], reader


def test_an_image_is_an_item_with_the_hash_of_its_file(photos):
    items, reader = items_of(photos)
    assert [item.id for item in items] == sorted(scan([photos]).files)
    assert reader.refused == []
    for item in items:
        assert item.sha256 == images.sha256(read_file(photos.parent / item.id))
        assert (item.kind, item.text, item.payload["width"], item.payload["height"]) == ("image", None, 8, 8)
    assert items[-1].image().getpixel((0, 0)) == (255, 0, 0)


def test_a_caption_that_changes_changes_the_text_alone(photos):
    (photos / "red.txt").write_text("red")
    before = items_of(photos)[0][-1]
    (photos / "red.txt").write_text("scarlet")
    after = items_of(photos)[0][-1]
    assert (before.text, after.text) == ("red", "scarlet")
    assert before.sha256 == after.sha256
    assert before.text_sha256 != after.text_sha256


def test_an_image_that_changed_is_not_decoded(photos, save_image):
    item = items_of(photos)[0][-1]
    save_image(photos / "red.png", "blue")
    with pytest.raises(FileError, match="it changed while it was read; sync again"):
        item.image()


def test_text_and_markdown_are_chunks(tmp_path):
    (tmp_path / "a.md").write_text("# One\nfirst\n\n## Two\nsecond\n", encoding="utf-8-sig")
    (tmp_path / "b.TXT").write_text("# no heading\n\nof a text")
    items, _ = items_of(tmp_path, ["text"])
    assert [item.id.rpartition("/")[2] for item in items] == ["a.md#chunk=1", "a.md#chunk=2", "b.TXT#chunk=1"]
    assert [item.text for item in items] == ["# One\nfirst", "## Two\nsecond", "# no heading\n\nof a text"]
    assert [item.payload["title"] for item in items] == ["One", "One > Two", None]
    assert all(item.image is None and item.sha256 == item.text_sha256 for item in items)
    text = (tmp_path / "a.md").read_text(encoding="utf-8-sig")
    assert [text[i.payload["start"] : i.payload["end"]] for i in items[:2]] == [i.text for i in items[:2]]


def test_a_chunk_behind_a_change_keeps_its_hash(tmp_path):
    """Its number is another one, its vector is known."""
    sections = [f"## {n}\n" + f"word{n} " * 30 for n in range(9)]
    (tmp_path / "a.md").write_text("\n".join(sections))
    before = items_of(tmp_path, ["text"])[0]
    (tmp_path / "a.md").write_text("\n".join([*sections[:4], "## new\nsection", *sections[4:]]))
    after = items_of(tmp_path, ["text"])[0]
    assert [i.id for i in after[:4]] == [i.id for i in before[:4]]
    assert {i.sha256 for i in after} - {i.sha256 for i in before} == {after[4].sha256}


def test_a_rule_is_part_of_what_is_up_to_date(photos, tmp_path):
    (tmp_path / "photos" / "a.md").write_text("text")
    found = scan([photos], suffixes_of(["images", "text"]))
    rules = {}
    for size in (500, 600):
        with Reader(found.files, ["images", "text"], Rules(chunk=size)) as reader:
            rules[size] = {file.id[-5:]: reader.rule(file) for file in found.files.values()}
            for file in found.files.values():
                assert all(item.payload["rule"] == reader.rule(file) for item in reader.read(file))
    assert rules[500]["/a.md"] != rules[600]["/a.md"]
    assert rules[500]["d.png"] == rules[600]["d.png"]


def test_an_unknown_kind_is_named():
    with pytest.raises(
        RetrievalUsageError, match=r"unknown kind of files 'video' \(known: images, text, pdf\)"
    ):
        suffixes_of(["images", "video"])
    with pytest.raises(RetrievalUsageError, match="no kind of files is named"):
        Reader([], [])


@pytest.mark.parametrize(
    "rules", [{"dpi": 0}, {"dpi": 5000}, {"chunk": 10}, {"overlap": 600}, {"overlap": -1}]
)
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(RetrievalUsageError, match="possible: "):
        Rules(**rules)


def test_kinds_share_no_suffix():
    every = suffixes_of(list(SOURCES))
    assert len(set(every)) == len(every)


def test_an_item_belongs_to_a_root_by_its_payloads_path(tmp_path):
    (tmp_path / "a#b.md").write_text("text")
    found = scan([tmp_path / "a#b.md"], (".md",))
    with Reader(found.files, ["text"]) as reader:
        [item] = [item for file in found.files.values() for item in reader.read(file)]
    assert found.covers(item.payload["path"])
    assert not found.covers(item.id)
    assert is_under(item.id, tmp_path.as_posix())


def test_a_line_is_one_line():
    assert as_line("a\nb\x1b[2J\u202e.png", "x\ty") == r"a\nb\x1b[2J\u202e.png: x\ty"


def test_the_size_is_the_decoded_ones(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
        data = read_file(tmp_path / "a.jpg")
        assert image_size(data) == images.decode_image(data).size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_in_bands_gives_the_pixels_of_the_whole(monkeypatch, mode):
    draw = np.random.default_rng(0)
    rgba = Image.fromarray(draw.integers(0, 256, (50, 70, 4), dtype=np.uint8))
    image = rgba.convert(mode) if mode != "PA" else rgba.convert("P").convert("PA")
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    whole = Image.alpha_composite(Image.new("RGBA", (70, 50), "white"), image.convert("RGBA")).convert("RGB")
    monkeypatch.setattr(images, "BAND", 200)  # two rows
    np.testing.assert_array_equal(np.asarray(as_rgb(image)), np.asarray(whole))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    """A name that was a file when it was scanned."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_file(tmp_path / "a.png")
