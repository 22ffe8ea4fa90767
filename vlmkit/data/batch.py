"""What a training step gets, and how rows become tensors.

Shapes: B rows, L tokens of the longest row, Q tokens of the longest question, K most images of a row,
P most numbers of a row's pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmkit.budget import SizedImage
from vlmkit.data.pack import PackedRow
from vlmkit.data.sample import Skipped
from vlmkit.encoders.batch import CHANNELS, PixelBatch
from vlmkit.encoders.spec import Pixels, VisionSpec
from vlmkit.errors import VlmkitError
from vlmkit.objectives import IGNORE

PADDING = -1


@dataclass(frozen=True)
class Batch:
    """Rows of a training step.

    Text tensors are None where the stage needs no text, image tensors where no row has an image.

    Attributes:
        sample_ids: The sample of each row; where rows hold several, those of each, one after another.
        captions: The captions of each of these.
        input_ids_BL: int64, padded on the right.
        labels_BL: int64, unshifted: the token itself where it is supervised, else -100.
        weights_BL: float32 loss weights.
        positions_BL: int64, position of a token in its own conversation.
        branches_BL: int64, 0 prefix, k >= 1 the k-th conversation of a packed row, -1 padding.
        segments_BL: int64, which sample's row a token belongs to, from 0 in each row, -1 padding; None where
            each row is one sample's.
        question_ids_BQ: int64, tokens of each row's first question, -1 is padding; None where the connector
            does not read questions.
        pixel_values: float32 (B, P), normalised: for each encoder, for each image, for each of its views the
            (3, height, width) pixels, all flat and one after the other; zeros behind a shorter row. No view
            is padded: `image_sizes` and the encoders' specs say where each lies.
        image_sizes: int64 (B, K, 3), width and height of each image in pixels and the level of its layout
            (see `VisionSpec.at`); 0 on padding.
        image_counts: Images of each in `sample_ids`, whose images lie in their row one after another; None
            where each row is one sample's.
        skipped: Samples that were left out of the step; with its first micro-batch.
        sources: The source of each in `sample_ids` in a mixture; empty without one.
    """

    sample_ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    input_ids_BL: Tensor | None = None
    labels_BL: Tensor | None = None
    weights_BL: Tensor | None = None
    positions_BL: Tensor | None = None
    branches_BL: Tensor | None = None
    segments_BL: Tensor | None = None
    question_ids_BQ: Tensor | None = None
    pixel_values: Tensor | None = None
    image_sizes: Tensor | None = None
    image_counts: tuple[int, ...] | None = None
    skipped: tuple[Skipped, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def owners_BL(self) -> Tensor:
        """Which of `sample_ids` a token belongs to: int64, -1 padding. Text is needed."""
        assert self.branches_BL is not None
        own_BL = self.branches_BL.clamp(max=0) if self.segments_BL is None else self.segments_BL
        counts_B = own_BL.amax(1) + 1
        return torch.where(own_BL >= 0, own_BL + (counts_B.cumsum(0) - counts_B)[:, None], PADDING)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """A copy on a device; `dtype` is that of the pixels alone (loss weights stay float32).

        `image_sizes` stay on the CPU: they are read as numbers.
        """
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name != "image_sizes":
                moved[field.name] = value.to(device, dtype if field.name == "pixel_values" else None)
        return replace(self, **moved)


@dataclass(frozen=True)
class RowImages:
    """All images of a row.

    Attributes:
        pixels: float32, flat, as in `Batch.pixel_values`.
        sizes: Width, height and level of each.
    """

    pixels: Pixels
    sizes: tuple[SizedImage, ...] = ()


def row_images(
    images: Sequence[Image.Image], sizes: Sequence[SizedImage], specs: Sequence[VisionSpec]
) -> RowImages:
    """Cut images into views for each encoder and normalise them."""
    parts = [(spec, *of) for spec in specs for of in zip(images, sizes, strict=True)]
    stops = list(accumulate(numbers_of(spec, size) for spec, _, size in parts))
    pixels = np.empty(stops[-1] if stops else 0, np.float32)
    for (spec, image, (_, _, level)), start, stop in zip(parts, [0, *stops], stops):
        spec.preprocess_into(pixels[start:stop], image, level)
    return RowImages(pixels, tuple(sizes))


def join_images(rows: Sequence[RowImages], specs: Sequence[VisionSpec]) -> RowImages:
    """The images of several rows as those of one: for each encoder, those of each row in turn."""
    if len(rows) == 1:
        return rows[0]
    parts: list[list[Pixels]] = []
    for row in rows:
        stops = list(accumulate(sum(numbers_of(spec, size) for size in row.sizes) for spec in specs))
        parts.append(np.split(row.pixels, stops[:-1]))
    pixels = np.concatenate([part for of_encoder in zip(*parts, strict=True) for part in of_encoder])
    return RowImages(pixels, tuple(size for row in rows for size in row.sizes))


def image_tensors(rows: Sequence[RowImages]) -> dict[str, Tensor]:
    """`pixel_values` and `image_sizes` of a batch; empty if no row has an image."""
    most = max(len(row.sizes) for row in rows)
    if not most:
        return {}
    pixels = np.zeros((len(rows), max(row.pixels.size for row in rows)), np.float32)
    sizes = np.zeros((len(rows), most, 3), np.int64)
    for b, row in enumerate(rows):
        pixels[b, : row.pixels.size] = row.pixels
        sizes[b, : len(row.sizes)] = np.reshape(row.sizes, (-1, 3))
    return {"pixel_values": torch.from_numpy(pixels), "image_sizes": torch.from_numpy(sizes)}


def listed_images(image_sizes: Tensor) -> list[list[SizedImage]]:
    """The images of each row out of (B, K, 3), without padding."""
    return [[(w, h, level) for w, h, level in row if w] for row in image_sizes.tolist()]


def pixel_batches(
    pixel_values: Tensor, image_sizes: Tensor, specs: Sequence[VisionSpec]
) -> Iterator[PixelBatch]:
    """What each encoder gets of a batch: its views of all images, in order.

    Args:
        pixel_values: (B, P).
        image_sizes: (B, K, 3).
        specs: Of the encoders.

    Raises:
        VlmkitError: Pixels and sizes do not fit together.
    """
    rows = listed_images(image_sizes)
    owned = [(image, i) for i, image in enumerate(image for row in rows for image in row)]
    starts = [0] * len(rows)
    lengths = [[sum(numbers_of(spec, image) for image in row) for row in rows] for spec in specs]
    wanted = max(map(sum, zip(*lengths, strict=True)))
    if wanted != pixel_values.shape[1]:
        raise VlmkitError(
            f"pixel_values have {pixel_values.shape[1]} numbers a row and image_sizes ask for {wanted}; "
            "build the inputs with this model's processor"
        )
    for spec, own in zip(specs, lengths, strict=True):
        views = [(view, i) for (w, h, level), i in owned for view in spec.views((w, h), level)]
        parts = [pixel_values[b, s : s + n] for b, (s, n) in enumerate(zip(starts, own, strict=True))]
        starts = [s + n for s, n in zip(starts, own, strict=True)]
        yield PixelBatch.of(torch.cat(parts), [view for view, _ in views], [i for _, i in views])


def numbers_of(spec: VisionSpec, image: SizedImage) -> int:
    """How many numbers the pixels of an image's views are."""
    return sum(CHANNELS * view.height * view.width for view in spec.views(image[:2], image[2]))


def text_tensors(rows: Sequence[PackedRow], pad_id: int) -> dict[str, Tensor]:
    """The text tensors of `Batch`, padded on the right; segments only where a row has several."""
    segments = {}
    if any(row.segments for row in rows):
        own = [row.segments or (0,) * len(row.ids) for row in rows]
        segments["segments_BL"] = _padded(own, PADDING)
    labels = [[i if w else IGNORE for i, w in zip(row.ids, row.weights)] for row in rows]
    return {
        "input_ids_BL": _padded([row.ids for row in rows], pad_id),
        "labels_BL": _padded(labels, IGNORE),
        "weights_BL": _padded([row.weights for row in rows], 0.0),
        "positions_BL": _padded([row.positions for row in rows], 0),
        "branches_BL": _padded([row.branches for row in rows], PADDING),
        **segments,
    }


def question_tensor(rows: Sequence[Sequence[int]]) -> Tensor:
    """Tokens of each row's question: int64 (B, Q), padded with -1 on the right."""
    return _padded(rows, PADDING)


def _padded(rows: Sequence[Sequence[int]] | Sequence[Sequence[float]], fill: int | float) -> Tensor:
    length = max(len(row) for row in rows)
    dtype = torch.float32 if isinstance(fill, float) else torch.int64
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=dtype)
