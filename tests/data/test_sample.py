"""What `open_image` gives: the pixels an index has of the file, or one line that says why not."""

import numpy as np
import pytest
from PIL import Image

from vlmkit.data.problems import ImageTooLargeError
from vlmkit.data.sample import open_image
from vlmkit.errors import VlmkitError
from vlmkit_retrieval import Index, load_image

NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
COLOUR = Image.fromarray(NOISE[:, :, :3])
GREY16 = Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "rgba.png": (Image.fromarray(NOISE), {}),
    "la.png": (Image.fromarray(NOISE).convert("LA"), {}),
    "palette.png": (COLOUR.quantize(8), {"transparency": 3}),
    "grey16.png": (GREY16, {}),
    "grey16.tiff": (Image.fromarray(NOISE[:, :, 1].astype(np.uint16) * 257), {}),
    "turned.jpg": (COLOUR.transpose(Image.Transpose.FLIP_TOP_BOTTOM), {"exif": turned()}),
    "print.jpg": (COLOUR.convert("CMYK"), {}),
    "bits.png": (Image.fromarray(NOISE[:, :, 2]).convert("1"), {}),
}


class Thumbnails:
    """Embeds an image as its pixels, brought to one size."""

    name, fingerprint, embed_dim = "thumbnails", "thumbnails-1", 192

    def embed_images(self, images):
        rows = np.stack([np.asarray(image.resize((8, 8)), np.float32).ravel() for image in images]) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_text(self, texts):
        raise ValueError("no text tower")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    for name, (image, options) in FILES.items():
        image.save(tmp_path / "files" / name, **options)
    return tmp_path / "files"


@pytest.mark.parametrize("name", FILES)
def test_an_index_loads_the_same_pixels(folder, name):
    ours, theirs = open_image(folder / name), load_image(folder / name)
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert open_image((folder / name).read_bytes()) == ours
    assert ours.size == ((12, 16) if name == "turned.jpg" else (16, 12))


def test_every_file_finds_itself(folder, tmp_path):
    with Index.create_or_open(tmp_path / "files.idx") as index:
        index.sync([folder], Thumbnails())
        for name in FILES:
            with Image.open(folder / name) as raw:
                for query in (open_image(folder / name), raw):
                    best = index.search(image=query, embedder=Thumbnails(), k=1)[0]
                    assert best.id.endswith("/" + name)
                    assert best.score == pytest.approx(1.0, abs=1e-6)


def test_sixteen_bits_and_their_transparency(tmp_path):
    grey = np.array([[0, 257, 300, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "g.png", transparency=257)
    assert np.asarray(open_image(tmp_path / "g.png"))[0, :, 0].tolist() == [0, 255, 1, 255]


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    COLOUR.save(tmp_path / "large.png")
    monkeypatch.setattr("vlmkit_retrieval.images.MAX_PIXELS", 100)
    cases = {
        "none.png": r"^sample '7': image \S+none\.png does not exist; check the path$",
        ".": r"^sample '7': \S+ is a folder, an image file is needed$",
        "text.png": r"^sample '7': \S+text\.png cannot be read as an image \(.*\); replace or remove it$",
        "large.png": r"^sample '7': \S+large\.png has 16 x 12 pixels; the limit is [\d,]+, resize it$",
    }
    for name, message in cases.items():
        with pytest.raises(VlmkitError, match=message):
            open_image(tmp_path / name, "sample '7'")
    with pytest.raises(VlmkitError, match=r"^image bytes cannot be read as an image"):
        open_image(b"hello")


def test_an_image_over_the_limit_of_pillow_is_too_large(tmp_path, monkeypatch):
    """Pillow raises before a size can be asked for; it was called damaged."""
    COLOUR.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ImageTooLargeError, match=r"bomb\.png has more than 50,000,000 pixels; resize it$"):
        open_image(tmp_path / "bomb.png")


def test_a_file_over_the_byte_limit_is_refused(tmp_path, monkeypatch):
    COLOUR.save(tmp_path / "a.png")
    monkeypatch.setattr("vlmkit_retrieval.images.MAX_BYTES", 100)
    with pytest.raises(VlmkitError, match=r"a\.png cannot be read as an image \(larger than"):
        open_image(tmp_path / "a.png")
