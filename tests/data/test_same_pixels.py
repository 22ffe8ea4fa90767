"""The model, its training and the index see the same pixels of a file, whatever its mode."""

import numpy as np
import pytest
from PIL import Image

from vlmkit.data.sample import open_image
from vlmkit_retrieval import load_image

GREY = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
COLOUR = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)


def palette_with_a_hole():
    image = Image.fromarray(COLOUR[:, :, :3]).quantize(16)
    image.info["transparency"] = 3
    return image


def turned():
    image = Image.fromarray(COLOUR[:, :, :3])
    image.getexif()[0x0112] = 6
    return image


FILES = {
    "rgba.png": lambda: Image.fromarray(COLOUR),
    "la.png": lambda: Image.fromarray(COLOUR).convert("LA"),
    "palette.png": palette_with_a_hole,
    "grey16.png": lambda: Image.fromarray(GREY),
    "bits.png": lambda: Image.fromarray(COLOUR[:, :, 0]).convert("1"),
    "cmyk.jpg": lambda: Image.fromarray(COLOUR[:, :, :3]).convert("CMYK"),
    "turned.png": turned,
}


@pytest.mark.parametrize("name", FILES)
def test_both_decoders_give_the_same_picture(name, tmp_path):
    image = FILES[name]()
    image.save(tmp_path / name, **({"exif": image.getexif()} if name == "turned.png" else {}))
    seen, found = open_image(tmp_path / name), load_image(tmp_path / name)
    assert seen.mode == "RGB"
    assert np.array_equal(np.asarray(seen), np.asarray(found))
    assert seen.size == ((48, 64) if name == "turned.png" else (64, 48))


def test_transparency_shows_white_and_sixteen_bits_keep_their_range(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    assert np.asarray(open_image(tmp_path / "grey.png"))[:, :, 0].tolist() == (GREY >> 8).tolist()
