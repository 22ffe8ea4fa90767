"""How an image becomes views: pure functions of sizes for the counting, and the same rule applied to pixels.

Sizes are (width, height) in pixels as Pillow gives them; grids are (rows, columns) in patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Size = tuple[int, int]
Fill = tuple[int, ...]
# Precision of the search for the scale of a native view, as in the reference.
EPSILON = 1e-5
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class Frame:
    """What an encoder states about the size of its views; see `VisionSpec`.

    Attributes:
        side: Side of a square view in pixels.
        patch: Side of a patch in pixels.
        shortest_edge: Shorter edge of the picture that `crop` cuts the centre from.
        max_patches: Most patches of a view of layout `native`.
    """

    side: int
    patch: int
    shortest_edge: int
    max_patches: int


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
        views: (image size, frame) to the grids.
        pictures: (image, frame, interpolation, fill colour) to the pictures.
        summary: The rule in words.
    """

    views: Callable[[Size, Frame], tuple[View, ...]]
    pictures: Callable[[Image.Image, Frame, Image.Resampling, Fill], list[Image.Image]]
    summary: str


def _one_view(image_size: Size, frame: Frame) -> tuple[View, ...]:
    return (View(frame.side // frame.patch, frame.side // frame.patch),)


def _square(image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    size = (frame.side, frame.side)
    return [image if image.size == size else image.resize(size, resample)]


def _crop(image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    """Shortest edge to `shortest_edge`, then the centre; CLIP's and DINOv2's own preprocessing."""
    w, h = image.size
    short, edge, side = min(w, h), frame.shortest_edge, frame.side
    # The longer edge is truncated, as in transformers' get_resize_output_image_size.
    size = (edge, int(edge * h / short)) if w <= h else (int(edge * w / short), edge)
    image = image.resize(size, resample)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return [image.crop((left, top, left + side, top + side))]


def _pad(image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    """Pad to a square with the mean colour, image centred, then resize; LLaVA 1.5's `expand2square`."""
    w, h = image.size
    if w != h:
        edge = max(w, h)
        square = Image.new("RGB", (edge, edge), fill)
        square.paste(image, ((edge - w) // 2, (edge - h) // 2))
        image = square
    return [image.resize((frame.side, frame.side), resample)]


def native_grid(image_size: Size, patch: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of the largest grid of at most `max_patches` that keeps an image's proportions.

    The binary search of SigLIP 2 NaFlex (Tschannen et al. 2025, https://arxiv.org/abs/2502.14786), step for
    step as in transformers' `get_image_size_for_max_num_patches`. Small images are scaled up.
    """
    width, height = image_size
    low, high = EPSILON / 10, LARGEST_SCALE
    while high - low >= EPSILON:
        scale = (low + high) / 2
        if _patches(height, scale, patch) * _patches(width, scale, patch) <= max_patches:
            low = scale
        else:
            high = scale
    return _patches(height, low, patch), _patches(width, low, patch)


def _patches(edge: int, scale: float, patch: int) -> int:
    return max(1, math.ceil(edge * scale / patch))


def _native_view(image_size: Size, frame: Frame) -> tuple[View, ...]:
    return (View(*native_grid(image_size, frame.patch, frame.max_patches)),)


def _native(image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> list[Image.Image]:
    rows, cols = native_grid(image.size, frame.patch, frame.max_patches)
    return [image.resize((cols * frame.patch, rows * frame.patch), resample)]


LAYOUTS: dict[str, Layout] = {
    "square": Layout(_one_view, _square, "resize to a square, aspect ratio not kept"),
    "crop": Layout(_one_view, _crop, "shortest edge to the side, then the centre square (CLIP)"),
    "native": Layout(
        _native_view, _native, "resize to the grid of at most max_patches nearest in shape (NaFlex)"
    ),
    "pad": Layout(_one_view, _pad, "pad to a square with the mean colour, then resize (LLaVA 1.5)"),
}
