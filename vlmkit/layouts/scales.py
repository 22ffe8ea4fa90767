"""Scales: the image at several sizes, their features joined channel by channel (S2).

Shi et al. 2024, "When Do We Not Need Larger Vision Models?", https://arxiv.org/abs/2403.13043. The joining is
in `vlmkit/encoders/scales.py`. The published wrapper scales a normalised tensor bicubically and without
antialiasing; here each scale is resized from the picture by Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vlmkit.errors import UsageError
from vlmkit.layouts.base import Fill, Frame, Layout, Size, View
from vlmkit.layouts.cut import cut, stretch
from vlmkit.layouts.options import check_whole


@dataclass(frozen=True)
class Scales(Layout):
    """The image as one square, and as s x s tiles of a square s times as large; one grid of wider features.

    Attributes:
        scales: Whole multiples of the encoder's side, from 1 upwards.
    """

    summary: ClassVar[str] = "squares of several sizes, features joined by channel (S2)"
    edge_to_edge: ClassVar[bool] = True
    scales: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if not isinstance(self.scales, list | tuple):
            raise UsageError(f"layout scales is {self.scales!r}; it needs a list like [1, 2, 3]")
        for scale in self.scales:
            check_whole("scales scale", scale, 1)
        if list(self.scales) != sorted(set(self.scales)) or self.scales[:1] not in ([1], (1,)):
            raise UsageError(f"layout scales is {list(self.scales)}; it needs 1 first, then larger ones")
        object.__setattr__(self, "scales", tuple(self.scales))

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`: the tiles of each scale row by row."""
        return (frame.square(), *[frame.square("tile")] * sum(scale**2 for scale in self.scales[1:]))

    def features(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.features`: all scales on the grid of the first."""
        return (frame.square(),)

    def whole(self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> Image.Image:
        """See `Layout.whole`."""
        return stretch(image, (frame.side, frame.side), resample)

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        sides = [scale * frame.side for scale in self.scales]
        return [tile for side in sides for tile in cut(stretch(image, (side, side), resample), frame.side)]
