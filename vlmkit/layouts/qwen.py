"""The layout of the Qwen-VL family: one view in the image's proportions, between two numbers of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts.base import Frame, Size, View
from vlmkit.layouts.native import FEWEST, STEP, OneGrid
from vlmkit.layouts.options import check_whole

# An image that is longer than this many times its width is refused, as in the reference.
LONGEST = 200
# Least and most pixels for a tiny encoder.
TINY = 256, 4096


@dataclass(frozen=True)
class Qwen(OneGrid):
    """Resize to whole groups of patches, in the image's proportions (Qwen2-VL's `smart_resize`).

    Bai et al. 2025 (https://arxiv.org/abs/2502.13923). An image between the two limits keeps its size, up to
    rounding.

    Attributes:
        merge: Patches along the side of a group that a later module makes one token of.
        min_pixels, max_pixels: Least and most pixels of a view; those of Qwen2.5-VL by default.
    """

    summary: ClassVar[str] = "own proportions between min_pixels and max_pixels (Qwen-VL)"
    merge: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 12_845_056

    def __post_init__(self) -> None:
        check_whole("qwen merge", self.merge, 1)
        check_whole("qwen min_pixels", self.min_pixels, 1)
        check_whole("qwen max_pixels", self.max_pixels, 1)
        if self.min_pixels > self.max_pixels:
            raise UsageError(
                f"layout qwen has min_pixels {self.min_pixels}, more than max_pixels {self.max_pixels}"
            )

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`.

        Raises:
            VlmkitError: The image is more than 200 times as long as it is wide.
        """
        side = frame.patch * self.merge
        rows, cols = qwen_grid(image_size, side, self.min_pixels, self.max_pixels)
        return (frame.grid(rows * self.merge, cols * self.merge),)

    def tiny_options(self) -> dict[str, Any]:
        """See `Layout.tiny_options`."""
        return {"min_pixels": min(self.min_pixels, TINY[0]), "max_pixels": min(self.max_pixels, TINY[1])}

    def smaller(self, frame: Frame) -> Self | None:
        """See `Layout.smaller`: three quarters of the pixels, 16 groups at the least."""
        fewer = int(self.max_pixels * STEP)
        if fewer < FEWEST * (frame.patch * self.merge) ** 2:
            return None
        return replace(self, max_pixels=fewer, min_pixels=min(self.min_pixels, fewer))


def qwen_grid(image_size: Size, side: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Rows and columns of squares of `side` pixels that an image is resized to.

    Each edge is rounded to whole squares. Where that gives too many pixels or too few, the image is scaled to
    the limit and its edges are rounded down or up; step for step as in transformers' `smart_resize`.

    Raises:
        VlmkitError: The image is more than 200 times as long as it is wide.
    """
    width, height = image_size
    if max(width, height) > LONGEST * min(width, height):
        raise VlmkitError(
            f"layout 'qwen': found an image of {width} x {height} pixels; an image may be {LONGEST} times as "
            "long as it is wide. Cut it, or use another layout"
        )
    # Python rounds halves to the even number; so does the reference.
    rows, cols = round(height / side), round(width / side)
    pixels = rows * cols * side * side
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, cols = (max(1, math.floor(edge / shrink / side)) for edge in (height, width))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, cols = (math.ceil(edge * grow / side) for edge in (height, width))
    return rows, cols
