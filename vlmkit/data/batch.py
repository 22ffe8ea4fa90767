"""What a training step gets, and how rows become tensors.

Shapes: B rows, L tokens of the longest row, M most views of a row, H and W pixels of the highest and of the
widest view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmkit.data.pack import PackedRow
from vlmkit.encoders.batch import canvas_shape, place
from vlmkit.encoders.spec import Pixels, VisionSpec

IGNORED = -100
PADDING = -1


@dataclass(frozen=True)
class Batch:
    """Rows of a training step.

    Text tensors are None where the stage needs no text, image tensors where no row has an image.

    Attributes:
        sample_ids: The sample of each row.
        captions: The captions of each row's sample.
        input_ids_BL: int64, padded on the right.
        labels_BL: int64, unshifted: the token itself where it is supervised, else -100.
        weights_BL: float32 loss weights.
        positions_BL: int64, position of a token in its own conversation.
        branches_BL: int64, 0 prefix, k >= 1 the k-th conversation of a packed row, -1 padding.
        pixel_values: float32 (B, M, 3, H, W), normalised; smaller views at the top left, zeros beside them.
        view_images: int64 (B, M), index of the view's image in its row, -1 padding.
        view_grids: int64 (B, M, 2), rows and columns of patches, 0 on padding.
    """

    sample_ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    input_ids_BL: Tensor | None = None
    labels_BL: Tensor | None = None
    weights_BL: Tensor | None = None
    positions_BL: Tensor | None = None
    branches_BL: Tensor | None = None
    pixel_values: Tensor | None = None
    view_images: Tensor | None = None
    view_grids: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """A copy on a device; `dtype` is that of the pixels alone (loss weights stay float32)."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = value.to(device, dtype if field.name == "pixel_values" else None)
        return replace(self, **moved)


@dataclass(frozen=True)
class RowViews:
    """All views of a row's images.

    Attributes:
        pixels: One (3, H, W) array a view.
        images: For each view the index of its image in the row.
        grids: For each view its rows and columns of patches.
    """

    pixels: tuple[Pixels, ...] = ()
    images: tuple[int, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()


def row_views(images: Sequence[Image.Image], spec: VisionSpec) -> RowViews:
    """Cut images into views and normalise them."""
    pixels: list[Pixels] = []
    owners: list[int] = []
    grids: list[tuple[int, int]] = []
    for i, image in enumerate(images):
        pictures, views = spec.preprocess(image), spec.views(image.size)
        assert len(pictures) == len(views)
        pixels += pictures
        owners += [i] * len(views)
        grids += [(view.rows, view.cols) for view in views]
    return RowViews(tuple(pixels), tuple(owners), tuple(grids))


def image_tensors(rows: Sequence[RowViews]) -> dict[str, Tensor]:
    """`pixel_values`, `view_images` and `view_grids` of a batch; empty if no row has an image."""
    most = max(len(row.pixels) for row in rows)
    if not most:
        return {}
    shape = canvas_shape(picture for row in rows for picture in row.pixels)
    pixels = np.zeros((len(rows), most, *shape), np.float32)
    images = np.full((len(rows), most), PADDING, np.int64)
    grids = np.zeros((len(rows), most, 2), np.int64)
    for b, row in enumerate(rows):
        for m, (picture, image, grid) in enumerate(zip(row.pixels, row.images, row.grids)):
            place(picture, pixels[b, m])
            images[b, m], grids[b, m] = image, grid
    return {
        "pixel_values": torch.from_numpy(pixels),
        "view_images": torch.from_numpy(images),
        "view_grids": torch.from_numpy(grids),
    }


def text_tensors(rows: Sequence[PackedRow], pad_id: int) -> dict[str, Tensor]:
    """The text tensors of `Batch`, padded on the right."""
    labels = [[i if w else IGNORED for i, w in zip(row.ids, row.weights)] for row in rows]
    return {
        "input_ids_BL": _padded([row.ids for row in rows], pad_id),
        "labels_BL": _padded(labels, IGNORED),
        "weights_BL": _padded([row.weights for row in rows], 0.0),
        "positions_BL": _padded([row.positions for row in rows], 0),
        "branches_BL": _padded([row.branches for row in rows], PADDING),
    }


def _padded(rows: Sequence[Sequence[int]] | Sequence[Sequence[float]], fill: int | float) -> Tensor:
    length = max(len(row) for row in rows)
    dtype = torch.float32 if isinstance(fill, float) else torch.int64
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=dtype)
