"""The pixel steps that layouts of several views share."""

from __future__ import annotations

from PIL import Image

from vlmkit.layouts.base import Size


def stretch(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    """Resize to (width, height); the proportions are not kept."""
    return image if image.size == size else image.resize(size, resample)


def cut(image: Image.Image, side: int) -> list[Image.Image]:
    """Cut a picture of whole tiles into squares of `side` pixels, row by row."""
    width, height = image.size
    corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    return [image.crop((left, top, left + side, top + side)) for left, top in corners]
