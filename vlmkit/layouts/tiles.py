"""Dynamic tiles: the image stretched to the grid of tiles nearest in shape, with a thumbnail (InternVL).

Chen et al. 2024, https://arxiv.org/abs/2404.16821; published in OpenGVLab/InternVL
`internvl_chat/internvl/train/dataset.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

from PIL import Image

from vlmkit.errors import UsageError
from vlmkit.layouts.base import Alone, Fill, Frame, Layout, Piece, Size, View
from vlmkit.layouts.cut import cut, stretch
from vlmkit.layouts.options import check_flag, check_whole


@dataclass(frozen=True)
class Tiles(Layout):
    """Stretch to a grid of `min_tiles` to `max_tiles` tiles; the whole image comes last in the sequence.

    Attributes:
        min_tiles, max_tiles: How many tiles a grid may have.
        thumbnail: The tokens of the whole image follow those of two or more tiles. Without it the whole image
            still goes through the encoder, for the vector of the index; its tokens do not enter the sequence.
    """

    summary: ClassVar[str] = "stretch to the nearest grid of tiles, thumbnail last (InternVL)"
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    def __post_init__(self) -> None:
        check_whole("tiles min_tiles", self.min_tiles, 1)
        check_whole("tiles max_tiles", self.max_tiles, 1)
        check_flag("tiles thumbnail", self.thumbnail)
        if self.min_tiles > self.max_tiles:
            raise UsageError(
                f"layout tiles has min_tiles {self.min_tiles}, more than max_tiles {self.max_tiles}"
            )

    def grid(self, image_size: Size, frame: Frame) -> Size:
        """Tiles across and down for an image."""
        return nearest_grid(image_size, frame.side, self.min_tiles, self.max_tiles)

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        cols, rows = self.grid(image_size, frame)
        if rows * cols == 1:
            return (frame.square(),)
        return (frame.square("thumbnail"), *[frame.square("tile")] * (rows * cols))

    def pieces(self, image_size: Size, frame: Frame) -> tuple[Piece, ...]:
        """See `Layout.pieces`."""
        tiles = range(1, len(self.views(image_size, frame)))
        last = [Alone(0)] if self.thumbnail or not tiles else []
        return (*map(Alone, tiles), *last)

    def whole(self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> Image.Image:
        """See `Layout.whole`."""
        return stretch(image, (frame.side, frame.side), resample)

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        cols, rows = self.grid(image.size, frame)
        whole = self.whole(image, frame, resample, fill)
        if rows * cols == 1:
            return [whole]
        return [whole, *cut(stretch(image, (cols * frame.side, rows * frame.side), resample), frame.side)]

    def smaller(self, frame: Frame) -> Self | None:
        """See `Layout.smaller`: one tile less."""
        fewer = self.max_tiles - 1
        return replace(self, min_tiles=min(self.min_tiles, fewer), max_tiles=fewer) if fewer else None


def nearest_grid(image_size: Size, side: int, min_tiles: int, max_tiles: int) -> Size:
    """Tiles across and down: the grid nearest in aspect ratio.

    Of equally near grids a larger one is taken if the image has more than half of its pixels.
    """
    width, height = image_size
    best, least = (1, 1), float("inf")
    for across, down in _grids(min_tiles, max_tiles):
        gap = abs(width / height - across / down)
        large = width * height > 0.5 * side * side * across * down
        if gap < least or (gap == least and large):
            best, least = (across, down), gap
    return best


@lru_cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[Size, ...]:
    """Every grid (across, down) of so many tiles, by area, then narrow before wide as in transformers."""
    numbers = range(1, max_tiles + 1)
    found = [(a, d) for a in numbers for d in numbers if min_tiles <= a * d <= max_tiles]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))
