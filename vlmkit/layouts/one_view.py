"""Layouts that make one square view of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vlmkit.layouts.base import Fill, Frame, Layout, Size, View
from vlmkit.layouts.options import check_flag


class OneSquare(Layout):
    """One view of the encoder's own size, whatever the image's."""

    def agrees(self, frame: Frame, other: Layout, others: Frame) -> bool:
        """See `Layout.agrees`: of sides of any size, if as much is cut off."""
        cut, others_cut = ((f.shortest_edge or f.side, f.side) for f in (frame, others))
        same_cut = cut[0] * others_cut[1] == others_cut[0] * cut[1]
        return (self.edge_to_edge and other.edge_to_edge) or (self == other and same_cut)

    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """See `Layout.views`."""
        return (frame.square(),)


@dataclass(frozen=True)
class Square(OneSquare):
    """Resize to a square; the aspect ratio is not kept. SigLIP's own preprocessing."""

    summary: ClassVar[str] = "resize to a square, aspect ratio not kept"
    edge_to_edge: ClassVar[bool] = True

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        size = (frame.side, frame.side)
        return [image if image.size == size else image.resize(size, resample)]


@dataclass(frozen=True)
class Crop(OneSquare):
    """Shortest edge to the encoder's `shortest_edge`, then the centre; CLIP's and DINOv2's own way.

    Attributes:
        stretch: Both edges go to `shortest_edge`; DeiT's processor in transformers.
        rounded: Of a margin that halves to no whole pixel, the cut takes the even side, as torchvision and
            so timm do; transformers always the upper and left one.
    """

    summary: ClassVar[str] = "shortest edge to the side, then the centre square (CLIP)"
    stretch: bool = False
    rounded: bool = False

    def __post_init__(self) -> None:
        check_flag("crop stretch", self.stretch)
        check_flag("crop rounded", self.rounded)

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        side = frame.side
        image = image.resize(self._size(image.size, frame.shortest_edge or side), resample)
        left, top = (self._half(edge - side) for edge in image.size)
        return [image.crop((left, top, left + side, top + side))]

    def _size(self, image_size: Size, edge: int) -> Size:
        w, h = image_size
        if self.stretch:
            return edge, edge
        # The longer edge is truncated, as in transformers' get_resize_output_image_size.
        return (edge, int(edge * h / w)) if w <= h else (int(edge * w / h), edge)

    def _half(self, margin: int) -> int:
        return round(margin / 2) if self.rounded else margin // 2


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


@dataclass(frozen=True)
class Letterbox(OneSquare):
    """Pad both sides by half of the difference, truncated, then as `crop`; Prismatic's `letterbox`.

    Where width and height differ by an even number this is `pad`. With an odd difference the canvas
    is one pixel short of a square: it is resized by its shorter edge, and the longer one is cut at both ends.
    A picture of 2 x 1 pixels is cut, not padded. Karamcheti et al. 2024, https://arxiv.org/abs/2402.07865,
    TRI-ML/prismatic-vlms `LetterboxPad`.
    """

    summary: ClassVar[str] = "pad both sides alike with the mean colour, then crop (Prismatic)"

    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """See `Layout.pictures`."""
        w, h = image.size
        right, down = (max(w, h) - w) // 2, (max(w, h) - h) // 2
        canvas = Image.new("RGB", (w + 2 * right, h + 2 * down), fill)
        canvas.paste(image, (right, down))
        canvas = shortest_to(canvas, frame.side, resample)
        # torchvision's CenterCrop rounds half to even, transformers' truncates.
        left, top = (round((edge - frame.side) / 2) for edge in canvas.size)
        return [canvas.crop((left, top, left + frame.side, top + frame.side))]


def shortest_to(image: Image.Image, edge: int, resample: Image.Resampling) -> Image.Image:
    """Bring the shorter edge to `edge`; the longer is truncated, as in transformers and torchvision."""
    w, h = image.size
    short = min(w, h)
    return image.resize((int(edge * w / short), int(edge * h / short)), resample)
