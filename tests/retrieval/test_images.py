from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.images import ImageError, decode_image, from_base64, in_data_uri, load_image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


RED = Image.new("RGB", (40, 20), (255, 0, 0))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        (encoded(RED)[:-30], "damaged image"),
        (encoded(RED, "JPEG")[:300], "damaged image|not an image"),
        (png_header(8000, 7000), "8000x7000 is over 50 million pixels"),
        (png_header(60000, 60000), "50 million pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "56 MP", "3600 MP", "eps"],
)
def test_what_is_no_usable_image_has_a_plain_reason(data, reason):
    with pytest.raises(ImageError, match=reason) as error:
        decode_image(data)
    assert "\n" not in str(error.value)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image(encoded(RED, "JPEG", exif=exif)).size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode):
    image = decode_image(encoded(RED.convert(mode), "TIFF"))
    assert (image.mode, image.size) == ("RGB", (40, 20))


def test_16_bit_grey_keeps_its_contrast():
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    pixels = np.asarray(decode_image(encoded(Image.fromarray(ramp))))
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))


def test_load_image_names_the_file(tmp_path):
    with pytest.raises(RetrievalError, match=r"gone\.png: No such file"):
        load_image(tmp_path / "gone.png")


def test_bytes_that_come_as_text(monkeypatch):
    assert from_base64("QUJD\nRA==  ") == b"ABCD"
    for wrong in ("QUJ", "Q-JD", "é"):
        with pytest.raises(ImageError, match=r"^the image is not valid base64 \("):
            from_base64(wrong)
    monkeypatch.setattr("vlmkit_retrieval.images.MAX_BYTES", 3)
    assert from_base64("QUJD") == b"ABC"
    with pytest.raises(ImageError, match=r"^the image is larger than 0 MiB"):
        from_base64("QUJDRA==")


def test_a_data_uri_has_one_form():
    assert in_data_uri("DATA:image/png;BASE64,QUJD,") == "QUJD,"
    assert in_data_uri("https://example.org/data:image/png;base64,QUJD") is None
    for wrong in ("data:", "data:image/png,QUJD", "data:image/png;base64"):
        with pytest.raises(ImageError, match=r"^a data URI needs the form"):
            in_data_uri(wrong)
