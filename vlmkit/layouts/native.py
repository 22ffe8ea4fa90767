"""Layouts that keep an image's proportions: one view whose grid follows the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from PIL import Image

from vlmkit.errors import UsageError
from vlmkit.layouts.base import Fill, Frame, Layout, Size, View
from vlmkit.layouts.options import check_whole

# Precision of the search for the scale of a native view, as in the reference.
EPSILON = 1e-5
LARGEST_SCALE = 100.0
# A budget is kept in steps of this factor, down to this many patches.
STEP, FEWEST = 0.75, 16


class OneGrid(Layout):
    """One view of the whole image, from edge to edge, on the grid that `views` states."""

    edge_to_edge: ClassVar[bool] = True

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        (view,) = self.views(image.size, frame)
        return [image.resize((view.width, view.height), resample)]


@dataclass(frozen=True)
class Native(OneGrid):
    """Resize to the grid of at most `max_patches` that is nearest to the image in shape (SigLIP 2 NaFlex).

    Attributes:
        max_patches: Most patches of a view; 0 for the encoder's own number.
    """

    summary: ClassVar[str] = "resize to the grid of at most max_patches nearest in shape (NaFlex)"
    max_patches: int = 0

    def __post_init__(self) -> None:
        check_whole("native max_patches", self.max_patches, 0)

    def budget(self, frame: Frame) -> int:
        """Most patches of a view.

        Raises:
            UsageError: Neither the layout nor the encoder states one.
        """
        stated = self.max_patches or frame.max_patches
        if stated < 1:
            raise UsageError(
                f"layout 'native' needs max_patches of 1 or more, found {stated}; "
                "e.g. layout: {type: native, max_patches: 256}"
            )
        return stated

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        return (frame.grid(*native_grid(image_size, frame.patch, self.budget(frame))),)

    def tiny_options(self) -> dict[str, Any]:
        """See `Layout.tiny_options`."""
        return {"max_patches": min(self.max_patches, FEWEST)}

    def smaller(self, frame: Frame) -> Self | None:
        """See `Layout.smaller`: three quarters of the patches, 16 at the least."""
        fewer = int(self.budget(frame) * STEP)
        return replace(self, max_patches=fewer) if fewer >= FEWEST else None


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
