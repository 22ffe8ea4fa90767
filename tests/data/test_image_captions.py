"""Folders of captioned images."""

import json
import pickle
import re
from functools import partial

import pytest
from PIL import Image

from vlmkit.data.formats.image_captions import image_captions
from vlmkit.data.sample import IMAGE, Message, read_row
from vlmkit.errors import UsageError, VlmkitError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "sub/c.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("not an image")
    return tmp_path


def texts(folder):
    (folder / "a.txt").write_text(" a dog\n")
    (folder / "b.TXT").write_text("a cat")
    (folder / "sub/c.txt").write_text("a bird")


def table(folder, rows, name="metadata.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(r) for r in rows))


ROWS = [
    {"file_name": "sub/c.webp", "text": "a bird"},
    {"file_name": "a.jpg", "text": "a dog", "source": "x"},
    {"file_name": "b.PNG", "text": "a cat"},
]


@pytest.mark.parametrize("kind", ["texts", "metadata.jsonl", "captions.jsonl"])
def test_captions_beside_images_or_in_a_table(folder, kind):
    if kind == "texts":
        texts(folder)
    else:
        table(folder, ROWS, kind)
    samples = image_captions(folder)
    assert [(s.id, s.captions) for s in samples] == [
        ("a.jpg", ("a dog",)),
        ("b.PNG", ("a cat",)),
        ("sub/c.webp", ("a bird",)),
    ]
    assert samples[0].conversations == ((Message("user", (IMAGE,)), Message("assistant", ("a dog",))),)
    assert all(s.open_images()[0].size == (4, 4) for s in samples)
    assert [s.id for s in image_captions(str(folder), limit=1)] == ["a.jpg"]


def test_an_image_without_caption_is_named(folder):
    texts(folder)
    (folder / "b.TXT").write_text("  \n")
    with pytest.raises(VlmkitError, match=r"b\.PNG has no caption; write b\.txt beside it"):
        image_captions(folder)
    table(folder, ROWS[:2])
    with pytest.raises(VlmkitError, match=r"b\.PNG has no caption"):
        image_captions(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*ROWS, {"file_name": "d.png", "text": "x"}],
            r"metadata.jsonl line 4, field 'file_name': .*d\.png does not",
        ),
        ([*ROWS, ROWS[0]], "line 4, field 'file_name': .*has a caption already"),
        (
            [*ROWS, {"file_name": "notes.md", "text": "x"}],
            r"line 4, field 'file_name': .*notes\.md is not among the images found in .*\.bmp, .*\.webp\)",
        ),
        (
            [*ROWS, {"file_name": "../x.png", "text": "x"}],
            r"line 4, field 'file_name': '\.\./x\.png' leads out",
        ),
        ([*ROWS, {"file_name": "/x.png", "text": "x"}], r"line 4, field 'file_name': '/x\.png' leads out of"),
        ([{"file_name": "a.jpg"}], "line 1, field 'text': text is needed, found nothing"),
        ([{"text": "x"}], "line 1, field 'file_name': text is needed"),
        ([["a.jpg", "x"]], "line 1 is a list; an object is needed"),
    ],
)
def test_malformed_tables(folder, rows, message):
    table(folder, rows)
    with pytest.raises(VlmkitError, match=message):
        image_captions(folder)
    samples = image_captions(folder, check=False)
    errors = [row.error for row in map(partial(read_row, samples), range(len(samples))) if row.error]
    assert any(re.search(message, str(error)) for error in errors), "kept, and said when it is reached"


def test_unchecked_bad_rows_come_after_all_images(folder):
    """Each had ended the whole data set, also where bad samples are skipped."""
    table(folder, [*ROWS[:2], {"file_name": "gone.png", "text": "x"}, {"file_name": "b.PNG", "text": 5}])
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n{")
    samples = image_captions(folder, check=False)
    rows = [read_row(samples, number) for number in range(len(samples))]
    bad = [f"metadata.jsonl bad row {i}" for i in range(2)]
    assert [row.name for row in rows] == ["a.jpg", "b.PNG", "sub/c.webp", *bad]
    assert [row.error is None for row in rows] == [True, False, True, False, False]
    assert "line 4, field 'text'" in str(rows[1].error) and "gone.png does not exist" in str(rows[3].error)
    assert (
        len(image_captions(folder, limit=4, check=False)) == 4 and len(image_captions(folder, 1, False)) == 1
    )


def test_other_errors(folder, tmp_path_factory):
    table(folder, ROWS)
    table(folder, ROWS, "captions.jsonl")
    with pytest.raises(VlmkitError, match=r"has both captions\.jsonl and metadata\.jsonl"):
        image_captions(folder)
    with pytest.raises(VlmkitError, match="holds no sample"):
        image_captions(tmp_path_factory.mktemp("empty"))
    with pytest.raises(VlmkitError, match="is not a folder"):
        image_captions(folder / "none")
    with pytest.raises(UsageError, match="limit is 0"):
        image_captions(folder, limit=0)


def test_a_text_that_is_not_utf8(folder):
    texts(folder)
    (folder / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(VlmkitError, match=r"a\.txt is not UTF-8"):
        image_captions(folder)
    samples = image_captions(folder, check=False)
    assert "a.txt is not UTF-8" in str(read_row(samples, 0).error) and samples[2].captions == ("a bird",)


def test_what_stays_in_memory_are_paths_and_captions(tmp_path):
    """Links count as files; order is folder by folder; names that are not UTF-8 are kept."""
    Image.new("RGB", (4, 4)).save(tmp_path / "x.data", "png")
    names = ["a/b.png", "a-b.png", "a/\udcff.png", *(f"n/{i}.png" for i in range(500))]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "x.data")
        (tmp_path / name).with_suffix(".txt").write_text(f"what {name[-6:-4]!a} shows")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    samples = image_captions(tmp_path)
    assert len(samples) == 503
    assert [s.id for s in samples[:3]] == ["a/b.png", "a/\udcff.png", "a-b.png"]
    assert samples[1].open_images()[0].size == (4, 4) and samples[1].captions == ("what '/\\udcff' shows",)
    assert len(pickle.dumps(samples)) < 503 * 50
