"""Pixtral's layout: one view in the image's proportions, no edge longer than a number of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from vlmkit.layouts.base import Frame, Size, View
from vlmkit.layouts.native import FEWEST, STEP, OneGrid
from vlmkit.layouts.options import check_whole


@dataclass(frozen=True)
class Longest(OneGrid):
    """Scale down until no edge is longer than `longest_edge`, then round each edge up to whole patches.

    Agrawal et al. 2024 (Pixtral 12B, https://arxiv.org/abs/2410.07073). Small images keep their size, up to
    rounding.

    Attributes:
        longest_edge: In pixels; 0 for the encoder's own side.
        merge: Edges are rounded up to whole groups of this many patches, as in Mistral 3.
    """

    summary: ClassVar[str] = "scale down to longest_edge, edges rounded up to whole patches (Pixtral)"
    longest_edge: int = 0
    merge: int = 1

    def __post_init__(self) -> None:
        check_whole("longest longest_edge", self.longest_edge, 0)
        check_whole("longest merge", self.merge, 1)

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        rows, cols = longest_grid(image_size, frame.patch * self.merge, self.longest_edge or frame.side)
        return (frame.grid(rows * self.merge, cols * self.merge),)

    def tiny_options(self) -> dict[str, Any]:
        """See `Layout.tiny_options`."""
        return {"longest_edge": 0}

    def smaller(self, frame: Frame) -> Self | None:
        """See `Layout.smaller`: three quarters of the patches of a square image, 16 groups at the least."""
        shorter = int((self.longest_edge or frame.side) * math.sqrt(STEP))
        groups = (shorter // (frame.patch * self.merge)) ** 2
        return replace(self, longest_edge=shorter) if groups >= FEWEST else None


def longest_grid(image_size: Size, side: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of squares of `side` pixels, as transformers' Pixtral processor counts them.

    The reference's last line, (edge - 1) // side + 1, counts none for an edge that scaling makes 0; at least
    one is counted here.
    """
    width, height = image_size
    ratio = max(width, height) / longest_edge
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    return max(1, math.ceil(height / side)), max(1, math.ceil(width / side))
