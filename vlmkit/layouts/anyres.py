"""AnyRes: the whole image, and the image in tiles whose tokens are put together again (LLaVA-1.6, OneVision).

Published in haotian-liu/LLaVA `llava/mm_utils.py` and LLaVA-VL/LLaVA-NeXT; Li et al. 2024,
https://arxiv.org/abs/2408.03326 has the limit of tokens. Pinpoints are (width, height), as in LLaVA;
transformers reads the same lists as (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from PIL import Image

from vlmkit.errors import UsageError
from vlmkit.layouts.base import Alone, Fill, Frame, Layout, Mosaic, Piece, Size, View
from vlmkit.layouts.cut import cut, stretch
from vlmkit.layouts.options import check_flag, check_whole

LLAVA_NEXT: tuple[Size, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
ONEVISION: tuple[Size, ...] = tuple((w, h) for w in range(1, 7) for h in range(1, 7))
BLACK = (0, 0, 0)
UNITS = ("tiles", "pixels")
# Pinpoints in pixels that were not said to be in pixels would be more tiles than this.
MOST_TILES = 1024


@dataclass(frozen=True)
class AnyRes(Layout):
    """The whole image squashed to a square, then the image on the best of some canvases, cut into tiles.

    Attributes:
        pinpoints: The canvases, (width, height) each; of equal ones the first is taken. Without any the whole
            image is the only view, as LLaVA takes several images.
        unit: What the pinpoints count: `tiles`, or `pixels` (whole multiples of the encoder's side).
        newline: One learned token ends each row of the tiles' grid.
        unpad: Tokens of padding leave the grid.
        max_tiles: The grid is scaled down to about the tokens of this many tiles; 0 for never.
    """

    summary: ClassVar[str] = "whole image and tiles of the best canvas, tokens put together (LLaVA-1.6)"
    pinpoints: tuple[Size, ...] = LLAVA_NEXT
    unit: Literal["tiles", "pixels"] = "tiles"
    newline: bool = True
    unpad: bool = True
    max_tiles: int = 0

    def __post_init__(self) -> None:
        check_flag("anyres newline", self.newline)
        check_flag("anyres unpad", self.unpad)
        check_whole("anyres max_tiles", self.max_tiles, 0)
        if self.unit not in UNITS:
            raise UsageError(f"layout anyres unit is {self.unit!r}; it needs one of {', '.join(UNITS)}")
        object.__setattr__(self, "pinpoints", _pairs(self.pinpoints))

    def canvases(self, frame: Frame) -> tuple[Size, ...]:
        """The pinpoints in tiles, (width, height).

        Raises:
            UsageError: One is in pixels and no multiple of the side, or in tiles and meant in pixels.
        """
        if self.unit == "pixels":
            if any(edge % frame.side for pinpoint in self.pinpoints for edge in pinpoint):
                raise UsageError(
                    f"anyres pinpoints {self.pinpoints} are in pixels and no multiples of the side "
                    f"of the encoder, {frame.side}; state multiples, or unit: tiles"
                )
            return tuple((w // frame.side, h // frame.side) for w, h in self.pinpoints)
        if any(w * h > MOST_TILES for w, h in self.pinpoints):
            raise UsageError(
                f"anyres pinpoints {self.pinpoints} are in tiles, and one is more than {MOST_TILES} of them; "
                "if they are in pixels, state unit: pixels"
            )
        return self.pinpoints

    def canvas(self, image_size: Size, frame: Frame) -> Size:
        """Width and height in tiles of the canvas for an image; (0, 0) if there are no pinpoints."""
        tiles = self.canvases(frame)
        best = best_canvas(image_size, [(w * frame.side, h * frame.side) for w, h in tiles])
        return best[0] // frame.side, best[1] // frame.side

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        cols, rows = self.canvas(image_size, frame)
        whole = frame.square("thumbnail" if rows else "full")
        return (whole, *[frame.square("tile")] * (rows * cols))

    def pieces(self, image_size: Size, frame: Frame) -> tuple[Piece, ...]:
        """See `Layout.pieces`."""
        cols, rows = self.canvas(image_size, frame)
        if not rows:
            return (Alone(0, self.newline),)
        # A grid that is cut to its own proportions is not cut.
        shown = image_size if self.unpad else (cols, rows)
        return Alone(0), Mosaic(1, rows, cols, shown, self.max_tiles, self.newline)

    def whole(self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> Image.Image:
        """See `Layout.whole`."""
        return stretch(image, (frame.side, frame.side), resample)

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`; padding is black, not the mean colour, as in LLaVA."""
        side = frame.side
        whole = self.whole(image, frame, resample, fill)
        cols, rows = self.canvas(image.size, frame)
        if not rows:
            return [whole]
        size = fit(image.size, (cols * side, rows * side))
        canvas = Image.new("RGB", (cols * side, rows * side), BLACK)
        corner = ((cols * side - size[0]) // 2, (rows * side - size[1]) // 2)
        canvas.paste(stretch(image, size, resample), corner)
        return [whole, *cut(canvas, side)]

    def tiny_options(self) -> dict[str, Any]:
        """See `Layout.tiny_options`: pixels become tiles, of the largest side that all edges share."""
        if self.unit == "tiles":
            return {}
        side = math.gcd(*(edge for pinpoint in self.pinpoints for edge in pinpoint))
        return {"unit": "tiles", "pinpoints": [[w // side, h // side] for w, h in self.pinpoints]}

    def smaller(self, frame: Frame) -> Self | None:
        """See `Layout.smaller`.

        With a limit of tokens, the limit of one tile less; else without the largest canvases. Then one tile
        beside the whole image, then the whole image alone.
        """
        tiles = self.canvases(frame)
        if not tiles:
            return None
        largest = max(w * h for w, h in tiles)
        limit = min(self.max_tiles, largest) - 1
        if limit > 0:
            return replace(self, max_tiles=limit)
        fewer = tuple((w, h) for w, h in tiles if w * h < largest and not self.max_tiles)
        if not fewer and largest > 1:
            fewer = ((1, 1),)
        return replace(self, pinpoints=fewer, unit="tiles")


@dataclass(frozen=True)
class AnyResMax(AnyRes):
    """AnyRes with every canvas up to 6 x 6 tiles and a limit of tokens; `anyres_max_9` of LLaVA-OneVision."""

    summary: ClassVar[str] = "anyres up to 6 x 6 tiles, scaled down to the tokens of max_tiles (OneVision)"
    pinpoints: tuple[Size, ...] = ONEVISION
    max_tiles: int = 9


def best_canvas(image_size: Size, canvases: Sequence[Size]) -> Size:
    """The canvas that shows most pixels of an image, and of such the one with least padding; in pixels.

    LLaVA's `select_best_resolution`, rounding and ties included. (0, 0) if there is no canvas.
    """
    width, height = image_size
    best, most, least = (0, 0), -1, 0
    for wide, high in canvases:
        scale = min(wide / width, high / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = wide * high - shown
        if shown > most or (shown == most and wasted < least):
            best, most, least = (wide, high), shown, wasted
    return best


def fit(image_size: Size, canvas: Size) -> Size:
    """The size of an image that touches two edges of a canvas; the other edge is rounded up."""
    (width, height), (wide, high) = image_size, canvas
    across, down = wide / width, high / height
    if across < down:
        return wide, min(math.ceil(height * across), high)
    return min(math.ceil(width * down), wide), high


def _pairs(stated: Sequence[Sequence[int]]) -> tuple[Size, ...]:
    """Pinpoints as a recipe or a file gives them, as tuples."""
    if not isinstance(stated, list | tuple):
        raise UsageError(f"layout anyres pinpoints is {stated!r}; it needs a list like [[1, 2], [2, 1]]")
    for pinpoint in stated:
        if not isinstance(pinpoint, list | tuple) or len(pinpoint) != 2:
            raise UsageError(f"layout anyres pinpoint is {pinpoint!r}; it needs [width, height]")
        for edge in pinpoint:
            check_whole("anyres pinpoint's edge", edge, 1)
    return tuple((w, h) for w, h in stated)
