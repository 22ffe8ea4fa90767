"""How an image becomes views: pure functions of sizes for the counting, and the same rule applied to pixels.

Sizes are (width, height) in pixels as Pillow gives them; grids are (rows, columns) in patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Size = tuple[int, int]
Fill = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """One picture that goes through the encoder.

    Attributes:
        rows, cols: Its grid of patches.
        role: `full` for the whole image at its place, `tile` for a cut-out, `thumbnail` for a small copy.
    """

    rows: int
    cols: int
    role: Literal["full", "tile", "thumbnail"] = "full"


@dataclass(frozen=True)
class Layout:
    """A rule, once for sizes and once for pixels; both give the same number of views in the same order.

    Attributes:
        views: (image size, view side, patch side) to the grids.
        pictures: (image, view side, interpolation, fill colour) to the pictures.
        summary: The rule in words.
    """

    views: Callable[[Size, int, int], tuple[View, ...]]
    pictures: Callable[[Image.Image, int, Image.Resampling, Fill], list[Image.Image]]
    summary: str


def _one_view(image_size: Size, side: int, patch: int) -> tuple[View, ...]:
    return (View(side // patch, side // patch),)


def _square(image: Image.Image, side: int, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    return [image if image.size == (side, side) else image.resize((side, side), resample)]


def _crop(image: Image.Image, side: int, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    """Shortest edge to `side`, then the centre; CLIP's own preprocessing."""
    w, h = image.size
    short = min(w, h)
    # The longer edge is truncated, as in transformers' get_resize_output_image_size.
    size = (side, int(side * h / short)) if w <= h else (int(side * w / short), side)
    image = image.resize(size, resample)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return [image.crop((left, top, left + side, top + side))]


def _pad(image: Image.Image, side: int, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    """Pad to a square with the mean colour, image centred, then resize; LLaVA 1.5's `expand2square`."""
    w, h = image.size
    if w != h:
        edge = max(w, h)
        square = Image.new("RGB", (edge, edge), fill)
        square.paste(image, ((edge - w) // 2, (edge - h) // 2))
        image = square
    return [image.resize((side, side), resample)]


LAYOUTS: dict[str, Layout] = {
    "square": Layout(_one_view, _square, "resize to a square, aspect ratio not kept"),
    "crop": Layout(_one_view, _crop, "shortest edge to the side, then the centre square (CLIP)"),
    "pad": Layout(_one_view, _pad, "pad to a square with the mean colour, then resize (LLaVA 1.5)"),
}
