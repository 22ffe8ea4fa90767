"""Images for a page: the original with the places of its views, and each view as an encoder gets it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmkit.data_check.inspect import ShownImage
from vlmkit.encoders.spec import VisionSpec
from vlmkit.look.place import INSIDE, coordinates
from vlmkit.look.scene import Floats, pictures_of

# Longest edge of the original on the page, in pixels.
EDGE = 480
# A view that shows more of the image than this is not marked on it.
WHOLE = 0.97
# Smaller pictures are kept exactly.
EXACT = 160
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DrawnView:
    """A view.

    Attributes:
        uri: Its pixels, normalisation undone, as a `data:` URI.
        width, height: In pixels.
        rows, cols: Of patches.
        role: What it shows, see `View.role`.
        box: Left, top, width and height on the original, in parts of its edges; None for all of it.
    """

    uri: str
    width: int
    height: int
    rows: int
    cols: int
    role: str
    box: Box | None


def original(image: ShownImage) -> str:
    """The image made small, as a `data:` URI."""
    small = image.picture.copy()
    small.thumbnail((EDGE, EDGE))
    return _uri(small)


def drawn_views(image: ShownImage, spec: VisionSpec) -> Iterator[DrawnView]:
    """What an encoder gets of an image."""
    width, height, level = image.sized
    views = spec.views((width, height), level)
    places = coordinates(spec, (width, height), level)
    for view, picture, place in zip(views, pictures_of(spec, image.picture, level), places, strict=True):
        pixels = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
        grid = (view.rows, view.cols)
        yield DrawnView(_uri(pixels), view.width, view.height, *grid, view.role, _box(place))


def _box(place: Floats) -> Box | None:
    """The part of the original that a view shows, from the coordinates of its pixels."""
    inside = place[2] > INSIDE
    if not inside.any():
        return None
    across = [_span(axis[inside], int(inside.any(axis=1 - i).sum())) for i, axis in enumerate(place[:2])]
    (left, width), (top, height) = across
    return None if width * height > WHOLE else (left, top, width, height)


def _span(values: Floats, pixels: int) -> tuple[float, float]:
    """Start and length of what pixels show along an axis; a coordinate is that of a pixel's middle."""
    low, high = float(values.min()), float(values.max())
    half = (high - low) / max(1, pixels - 1) / 2
    start, end = max(0.0, low - half), min(1.0, high + half)
    return start, end - start


def _uri(image: Image.Image) -> str:
    file = io.BytesIO()
    exact = max(image.size) <= EXACT
    image.save(file, **({"format": "PNG"} if exact else {"format": "JPEG", "quality": 88}))
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
