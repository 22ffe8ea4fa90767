"""From bytes to an image, or to a plain reason why not. Nothing here trusts a file's name or its header.

The one decoder: what a model is trained on and asked about comes through here too, so that an index and a
model see the same pixels of a file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlmkit_retrieval.errors import FileError, RetrievalError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Without a list Pillow tries every format it knows, among them some that start other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
MAX_BYTES = 256 * 1024 * 1024
BAND = 4_000_000  # pixels


class ImageError(FileError):
    """A file that is no usable image; the message is the reason alone, without the file's name."""


class ImageSizeError(ImageError):
    """A picture with more pixels than `MAX_PIXELS`."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(
            f"{width}x{height} is over {MAX_PIXELS // 1_000_000} million pixels; make it smaller"
        )
        self.width, self.height = width, height


def decode_image(data: bytes, shorter_edge: int = 0) -> Image.Image:
    """Decode to RGB, upright (EXIF orientation applied); of an animation the first frame.

    Args:
        data: The content of a PNG, JPEG, WebP, GIF, BMP or TIFF file.
        shorter_edge: A JPEG file is decoded at a half, a quarter or an eighth of its size where that divides
            both edges and the shorter one keeps at least this many pixels: faster, slightly other pixels.
            0 for never.

    Raises:
        ImageError: Empty, truncated, no image, or more than 50 million pixels (read from the header).
    """
    with _opened(data) as image:
        if shorter_edge:
            _draft(image, shorter_edge)
        # In place: nobody else holds this image, and a copy of a camera's picture takes 10 ms.
        ImageOps.exif_transpose(image, in_place=True)
        return as_rgb(image)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height that `decode_image` will give, from the header alone.

    Raises:
        ImageError: As `decode_image`, but for damage behind the header.
    """
    with _opened(data) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations by a quarter
        return (image.height, image.width) if turned else image.size


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An image of an allowed size; whatever goes wrong while it is open is an `ImageError`."""
    if not data:
        raise ImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image (possible: {', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        # Pillow's own limit comes before the size can be asked for.
        raise ImageError(f"more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller") from error
    except Exception as error:  # a hostile file can raise anything; it must not stop the other files
        raise ImageError(f"damaged image ({' '.join(str(error).split())})") from error


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file under the same limits as a sync.

    Raises:
        RetrievalError: It cannot be read or is no usable image; the message names the file.
    """
    try:
        return decode_image(read_file(Path(path)))
    except ImageError as error:
        raise RetrievalError(f"{os.fspath(path)}: {error}") from error


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The content of a regular file of at most `limit` bytes (None: `MAX_BYTES`, 256 MiB).

    Raises:
        ImageError: It cannot be read, is larger, or is no regular file (a pipe would wait for a writer).
    """
    limit = MAX_BYTES if limit is None else limit
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError("not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    if len(data) > limit:
        raise ImageError(f"larger than {limit // 1024**2} MiB")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # does not wait for a pipe's other end


def from_base64(encoded: str) -> bytes:
    """The bytes of an image that came as text; line breaks and spaces in it are no harm.

    Raises:
        ImageError: They would be over `MAX_BYTES` (said before anything is decoded), or it is not base64.
    """
    if len(encoded) > MAX_BYTES * 4 // 3:
        raise ImageError(f"the image is larger than {MAX_BYTES // 1024**2} MiB")
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the image is not valid base64 ({error})") from None


def in_data_uri(url: str) -> str | None:
    """The base64 text of a data URI; None where an address is of another kind.

    Raises:
        ImageError: A data URI of another form than `data:image/png;base64,DATA`.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data":
        return None
    head, found, data = rest.partition(",")
    if not found or not head.lower().endswith(";base64"):
        raise ImageError("a data URI needs the form data:image/png;base64,DATA")
    return data


def sha256(data: bytes) -> str:
    """The identity of a file's content, in hex."""
    return hashlib.sha256(data).hexdigest()


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageSizeError(image.width, image.height)


def _draft(image: Image.Image, shorter_edge: int) -> None:
    """Let libjpeg decode fewer pixels; Pillow does nothing for other formats.

    Only where the proportions stay exact: rounded edges move a crop by up to a pixel of the view.
    """
    width, height = image.size
    for scale in (8, 4, 2):
        if not (width % scale or height % scale) and min(width, height) // scale >= shorter_edge:
            image.draft("RGB", (width // scale, height // scale))
            return


def upright_rgb(image: Image.Image) -> Image.Image:
    """`to_rgb` with the EXIF orientation applied: what an index stores of an image."""
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Three 8-bit channels: the one rule for what the index and the model see of an image.

    Transparency is laid over white, as transformers does, so that no hidden colour shows; 16-bit grey keeps
    its upper byte, where Pillow would clip a photograph to white.

    Returns:
        An image of its own: what is done to `image` later does not show in it.
    """
    rgb = as_rgb(image)
    return rgb.copy() if rgb is image else rgb


def as_rgb(image: Image.Image) -> Image.Image:
    """`to_rgb` for pixels that are only read: an image that is RGB already is returned itself, loaded."""
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if "A" not in image.getbands() and "transparency" not in image.info:
        image.load()  # its file may be closed by the time its pixels are read
        return image if image.mode == "RGB" else image.convert("RGB")
    return _over_white(image)


def _over_white(image: Image.Image) -> Image.Image:
    """In bands: whole, a picture of the largest size would be held in five copies."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, BAND // max(1, image.width))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return rgb


def _to_8_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.uint16)
    if "transparency" in image.info:  # one of the 65,536 values
        grey[grey == image.info["transparency"]] = 65535
    return Image.fromarray((grey >> 8).astype(np.uint8))
