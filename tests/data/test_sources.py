"""Where images come from: files, bytes, parts of files, memory, data URIs; never from the network."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from vlmkit.data.formats.hf_rows import Columns, read_sample
from vlmkit.data.formats.llava_json import llava_json
from vlmkit.data.formats.sources import embedded_image
from vlmkit.data.sample import FileSlice, Sample, open_image
from vlmkit.errors import VlmkitError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
OUT = io.BytesIO()
NOISE.save(OUT, "png")
PNG = OUT.getvalue()
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_every_source_gives_the_same_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "big").write_bytes(b"before" + PNG + b"after")
    part = FileSlice(tmp_path / "big", 6, len(PNG), "a.png")
    sources = (tmp_path / "a.png", PNG, part, NOISE, embedded_image(URI, ""))
    assert [image.tobytes() for image in Sample("x", sources, ()).open_images()] == [NOISE.tobytes()] * 5


def test_an_image_in_memory_is_upright_rgb_of_its_own():
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    NOISE.save(out, "jpeg", exif=exif)
    turned = Image.open(io.BytesIO(out.getvalue()))
    assert open_image(turned).tobytes() == open_image(out.getvalue()).tobytes()
    assert open_image(turned).size == (5, 7)
    opened = open_image(NOISE)
    opened.putpixel((0, 0), (1, 2, 3))
    assert NOISE.getpixel((0, 0)) != (1, 2, 3)


def test_a_part_that_is_not_there_is_named(tmp_path):
    (tmp_path / "s.tar").write_bytes(PNG)
    with pytest.raises(VlmkitError, match=r"^sample '7': .*s\.tar, member k\.png has \d+ of its 999 bytes"):
        open_image(FileSlice(tmp_path / "s.tar", 1, 999, "k.png"), "sample '7'")
    with pytest.raises(VlmkitError, match=r"^sample '7': .*s\.tar, member k\.png cannot be read as an image"):
        open_image(FileSlice(tmp_path / "s.tar", 1, 9, "k.png"), "sample '7'")
    with pytest.raises(VlmkitError, match=r"none, member k\.png cannot be read: No such file"):
        open_image(FileSlice(tmp_path / "none", 1, 9, "k.png"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "https://example.org/a.png",
            r"found the URL 'https://example.org/a.png' \(https://\); images are not",
        ),
        ("HTTP://example.org/a.png", "images are not downloaded"),
        ("s3://bucket/a.png", "images are not downloaded"),
        ("data:image/png,abc", "a data URI starts with data:image/TYPE;base64,"),
        ("data:image/png;base64", "a data URI starts with"),
        ("data:image/png;base64,a*b=", "is not base64"),
        ("data:image/png;base64,", "is empty"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, text, message):
    with pytest.raises(VlmkitError, match=f"here: .*{message}"):
        embedded_image(text, "here")
    row = {"image": text, "conversations": [{"from": "human", "value": "<image>"}]}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(VlmkitError, match=f"row 0, field 'image': .*{message}"):
        llava_json(tmp_path / "a.json", tmp_path)
    row = {"images": [text], "talk": [{"user": "a", "assistant": "b"}]}
    with pytest.raises(VlmkitError, match=rf"set row 4, field 'images\[0\]': .*{message}"):
        read_sample(row, "set row 4", Columns("talk", "images", tmp_path))


@pytest.mark.parametrize("name", ["a.png", "a:b.png", "C:\\a.png", "database/a.png", "x/data:a.png"])
def test_a_path_is_a_path(name):
    assert embedded_image(name, "") is None


def test_rows_carry_images_in_texts_and_in_memory(tmp_path):
    turns = [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "two"}]
    row = {"image": [URI, "a.png"], "conversations": turns}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert llava_json(tmp_path / "a.json", tmp_path)[0].images == (PNG, tmp_path / "a.png")
    row = {"images": [NOISE, URI, {"bytes": PNG, "path": None}], "talk": [{"user": "a", "assistant": "b"}]}
    sample = read_sample(row, "", Columns("talk", "images", tmp_path))
    assert [image.tobytes() for image in sample.open_images()] == [NOISE.tobytes()] * 3
