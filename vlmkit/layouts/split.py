"""Split: the longest edge to a fixed length, in whole tiles, and a global view (Idefics3, SmolVLM).

Laurençon et al. 2024, https://arxiv.org/abs/2408.12637, and Marafioti et al. 2025,
https://arxiv.org/abs/2504.05299; step for step as transformers' Idefics3 image processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from PIL import Image

from vlmkit.layouts.base import Alone, Fill, Frame, Layout, Piece, Size, View
from vlmkit.layouts.cut import cut, stretch
from vlmkit.layouts.options import check_whole

# The longest edge is never longer than this, as in the reference.
LARGEST_EDGE = 4096
TILES = 4


@dataclass(frozen=True)
class Split(Layout):
    """Rows and columns of tiles; the whole image comes last in the sequence. Small images are scaled up.

    Attributes:
        longest_edge: What the longest edge is brought to, in pixels (the processors' `size`; their
            `max_image_size` is the encoder's side); 0 for four tiles. At most 4096 pixels are used.
    """

    summary: ClassVar[str] = "longest edge to whole tiles, global view last (Idefics3, SmolVLM)"
    longest_edge: int = 0

    def __post_init__(self) -> None:
        check_whole("split longest_edge", self.longest_edge, 0)

    def edge(self, frame: Frame) -> int:
        """What the longest edge is brought to, in pixels."""
        return self.longest_edge or TILES * frame.side

    def grid(self, image_size: Size, frame: Frame) -> Size:
        """Tiles across and down for an image."""
        width, height = whole_tiles(shrunk(image_size, self.edge(frame)), frame.side)
        return width // frame.side, height // frame.side

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        cols, rows = self.grid(image_size, frame)
        if rows * cols == 1:
            return (frame.square(),)
        return (frame.square("thumbnail"), *[frame.square("tile")] * (rows * cols))

    def pieces(self, image_size: Size, frame: Frame) -> tuple[Piece, ...]:
        """See `Layout.pieces`."""
        return (*map(Alone, range(1, len(self.views(image_size, frame)))), Alone(0))

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`; resized twice, and the global view a third time, as in the reference."""
        size = shrunk(image.size, self.edge(frame))
        image = stretch(stretch(image, size, resample), whole_tiles(size, frame.side), resample)
        whole = stretch(image, (frame.side, frame.side), resample)
        return [whole] if image.size == whole.size else [whole, *cut(image, frame.side)]

    def tiny_options(self) -> dict[str, Any]:
        """See `Layout.tiny_options`."""
        return {"longest_edge": 0}

    def smaller(self, frame: Frame) -> Self | None:
        """See `Layout.smaller`: the longest edge one tile less, in whole tiles."""
        tiles = math.ceil(min(self.edge(frame), LARGEST_EDGE) / frame.side) - 1
        return replace(self, longest_edge=tiles * frame.side) if tiles else None


def shrunk(image_size: Size, longest_edge: int) -> Size:
    """The size with its longest edge at `longest_edge`, at most 4096; the other truncated, then made even."""
    width, height = _with_longest(image_size, longest_edge)
    if image_size[0] >= image_size[1]:
        height += height % 2
    else:
        width += width % 2
    if max(width, height) > LARGEST_EDGE:
        width, height = _with_longest((max(width, 1), max(height, 1)), LARGEST_EDGE)
    return max(width, 1), max(height, 1)


def whole_tiles(size: Size, side: int) -> Size:
    """The size with its longest edge rounded up to whole tiles, then the other from the same proportions."""
    width, height = _with_longest(size, math.ceil(max(size) / side) * side)
    return math.ceil(width / side) * side, math.ceil(height / side) * side


def _with_longest(size: Size, edge: int) -> Size:
    """The longest edge set, the other in proportion and truncated: float by float as in the reference."""
    width, height = size
    aspect = width / height
    return (edge, int(edge / aspect)) if width >= height else (int(edge * aspect), edge)
