"""Images of a batch as views, and what every encoder does with the tokens of views.

Shapes: I views, B images, P prefix + patches, T patches of all views, V width, C H W a view's pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmkit.encoders.spec import Pixels, VisionSpec


@dataclass(frozen=True)
class PixelBatch:
    """Views of a batch of images, in order of their image.

    Attributes:
        pixels_ICHW: Normalised pixels of the views; smaller views at the top left, zeros beside them.
        grids_I2: Rows and columns of patches of each view (int64, on the CPU).
        image_of_view_I: Index of the image each view belongs to (int64, on the CPU).
    """

    pixels_ICHW: Tensor
    grids_I2: Tensor
    image_of_view_I: Tensor


def pixel_batch(spec: VisionSpec, images: Sequence[Image.Image]) -> PixelBatch:
    """Preprocess at least one image by the spec and put the views one after the other."""
    pixels, grids, owners = [], [], []
    for i, image in enumerate(images):
        pixels += spec.preprocess(image)
        views = spec.views(image.size)
        grids += [(v.rows, v.cols) for v in views]
        owners += [i] * len(views)
    canvas_ICHW = np.zeros((len(pixels), *canvas_shape(pixels)), np.float32)
    for canvas, picture in zip(canvas_ICHW, pixels, strict=True):
        place(picture, canvas)
    return PixelBatch(torch.from_numpy(canvas_ICHW), torch.tensor(grids), torch.tensor(owners))


def canvas_shape(pixels: Iterable[Pixels]) -> tuple[int, int, int]:
    """(3, H, W) into which each of at least one view fits."""
    _, heights, widths = zip(*(picture.shape for picture in pixels), strict=True)
    return 3, max(heights), max(widths)


def place(picture: Pixels, canvas_CHW: Pixels) -> None:
    """Write a view to the top left of its canvas."""
    canvas_CHW[:, : picture.shape[1], : picture.shape[2]] = picture


def first_patches(hidden_IPV: Tensor, prefix_tokens: int) -> Tensor:
    """Drop prefix tokens and flatten the views: (I, prefix + patches, V) to (T, V)."""
    return hidden_IPV[:, prefix_tokens:].flatten(0, 1)


def first_views(hidden_IPV: Tensor, image_of_view_I: Tensor) -> Tensor:
    """Tokens of each image's first view, which shows the whole image: (I, P, V) to (B, P, V)."""
    first_I = torch.ones_like(image_of_view_I, dtype=torch.bool)
    first_I[1:] = image_of_view_I[1:] != image_of_view_I[:-1]
    return hidden_IPV if bool(first_I.all()) else hidden_IPV[first_I.to(hidden_IPV.device)]
