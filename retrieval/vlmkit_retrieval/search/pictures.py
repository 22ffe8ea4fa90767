"""Hits as small pictures for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.images import ImageError, decode_image, read_file, sha256, upright_rgb
from vlmkit_retrieval.search.hits import SearchHit

# Longest edge of a thumbnail in pixels: twice the width of a card, for screens with fine pixels.
EDGE = 480
# Smaller pictures are kept exactly, and shown with their pixels.
EXACT = 96


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Attributes:
        uri: Its pixels, as a `data:` URI.
        width, height: In pixels.
        small: It is the picture itself, and so small that its pixels should be seen.
    """

    uri: str
    width: int
    height: int
    small: bool


def file_picture(hit: SearchHit) -> Image.Image | None:
    """The image file that a hit is; None for a text or a page.

    Raises:
        RetrievalError: The file is gone, no image, or not the one any more that was indexed.
    """
    if hit.payload.get("kind", "image") != "image" or "path" not in hit.payload:
        return None
    data = read_file(Path(hit.payload["path"]))
    if hit.payload.get("sha256") not in (None, sha256(data)):
        raise ImageError("the file has changed since it was indexed")
    return decode_image(data, shorter_edge=EDGE)


def thumbnail_of(hit: SearchHit, picture: Callable[[SearchHit], Image.Image | None]) -> Thumbnail | str:
    """The thumbnail, or why there is none."""
    try:
        image = picture(hit)
    except RetrievalError as error:
        return str(error)
    if image is None:
        return str(hit.payload.get("kind", "no picture"))
    return thumbnail(image)


def thumbnail(image: Image.Image) -> Thumbnail:
    """A picture made small."""
    small = upright_rgb(image)
    exact = max(small.size) <= EXACT
    small.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    if exact:
        small.save(file, "PNG")
    else:
        small.save(file, "JPEG", quality=82, optimize=True)
    kind = "png" if exact else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Thumbnail(uri, *small.size, small=exact)
