"""Layouts that make one square view of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vlmkit.layouts.base import Fill, Frame, Layout, Size, View


class OneSquare(Layout):
    """One view of the encoder's own size, whatever the image's."""

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        return (frame.square(),)


@dataclass(frozen=True)
class Square(OneSquare):
    """Resize to a square; the aspect ratio is not kept. SigLIP's own preprocessing."""

    summary: ClassVar[str] = "resize to a square, aspect ratio not kept"

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        size = (frame.side, frame.side)
        return [image if image.size == size else image.resize(size, resample)]


@dataclass(frozen=True)
class Crop(OneSquare):
    """Shortest edge to the encoder's `shortest_edge`, then the centre; CLIP's and DINOv2's own way."""

    summary: ClassVar[str] = "shortest edge to the side, then the centre square (CLIP)"

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        w, h = image.size
        short, edge, side = min(w, h), frame.shortest_edge or frame.side, frame.side
        # The longer edge is truncated, as in transformers' get_resize_output_image_size.
        size = (edge, int(edge * h / short)) if w <= h else (int(edge * w / short), edge)
        image = image.resize(size, resample)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return [image.crop((left, top, left + side, top + side))]


@dataclass(frozen=True)
class Pad(OneSquare):
    """Pad to a square with the mean colour, image centred, then resize; LLaVA 1.5's `expand2square`."""

    summary: ClassVar[str] = "pad to a square with the mean colour, then resize (LLaVA 1.5)"

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        w, h = image.size
        if w != h:
            edge = max(w, h)
            square = Image.new("RGB", (edge, edge), fill)
            square.paste(image, ((edge - w) // 2, (edge - h) // 2))
            image = square
        return [image.resize((frame.side, frame.side), resample)]
