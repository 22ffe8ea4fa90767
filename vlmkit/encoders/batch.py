"""Images of a batch as views, and what every encoder does with the tokens of views.

Shapes: I views, B images, P prefix + patches, T patches of all views, V width, C H W a view's pixels,
N numbers of all pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import VlmkitError
from vlmkit.layouts import View
from vlmkit_connectors import VisionFeatures

CHANNELS = 3


class SeveralSizesError(VlmkitError):
    """Views of several sizes where the tower takes those of one."""


@dataclass(frozen=True)
class PixelBatch:
    """Views of a batch of images, in order of their image, that of the whole image first; nothing is padded.

    Attributes:
        pixels_N: Normalised pixels, one (C, H, W) view after the other, flat.
        sizes_I2: Height and width of each view in pixels (int64, on the CPU).
        grids_I2: Rows and columns of patches of each view (int64, on the CPU).
        image_of_view_I: Index of the image each view belongs to (int64, on the CPU).
    """

    pixels_N: Tensor
    sizes_I2: Tensor
    grids_I2: Tensor
    image_of_view_I: Tensor

    @classmethod
    def of(cls, pixels_N: Tensor, views: Sequence[View], owners: Sequence[int]) -> PixelBatch:
        """From flat pixels, what a spec says of them, and the image of each view."""
        sizes, grids = [(v.height, v.width) for v in views], [(v.rows, v.cols) for v in views]
        return cls(pixels_N, torch.tensor(sizes), torch.tensor(grids), torch.tensor(owners))

    def views(self) -> list[Tensor]:
        """The pixels of each view on their own, (C, H, W); no copies."""
        sizes = self.sizes_I2.tolist()
        flat = torch.split(self.pixels_N, [CHANNELS * height * width for height, width in sizes])
        return [own.view(CHANNELS, *size) for own, size in zip(flat, sizes, strict=True)]

    @property
    def pixels_ICHW(self) -> Tensor:
        """All views as one tensor, for towers whose views are all of one size; no copy.

        Raises:
            SeveralSizesError: They are not.
        """
        sizes = sorted(set(map(tuple, self.sizes_I2.tolist())))
        if len(sizes) != 1:
            found = ", ".join(f"{height}x{width}" for height, width in sizes[:5])
            raise SeveralSizesError(
                f"this encoder takes views of one size, the layout makes {found}; use a layout of square "
                "views (square, crop, pad), or one image at a time"
            )
        return self.pixels_N.view(-1, CHANNELS, *sizes[0])

    def to(self, device: torch.device | str | int, dtype: torch.dtype | None = None) -> PixelBatch:
        """Pixels on a device, and of a type if one is given; the small integer tensors stay on the CPU."""
        return replace(self, pixels_N=self.pixels_N.to(device, dtype))


def pixel_batch(spec: VisionSpec, images: Sequence[Image.Image], whole_only: bool = False) -> PixelBatch:
    """Preprocess at least one image by the spec and put the views one after the other.

    Args:
        spec: Of the encoder.
        images: In any mode.
        whole_only: Of each image only the first view, which shows all of it: the vector needs no other.
    """
    views = [spec.views(image.size)[: 1 if whole_only else None] for image in images]
    counts = [sum(CHANNELS * v.height * v.width for v in own) for own in views]
    pixels_N = np.empty(sum(counts), np.float32)
    stops = list(accumulate(counts))
    for image, count, stop in zip(images, counts, stops, strict=True):
        spec.preprocess_into(pixels_N[stop - count : stop], image, whole=whole_only)
    owners = [i for i, own in enumerate(views) for _ in own]
    return PixelBatch.of(torch.from_numpy(pixels_N), list(chain.from_iterable(views)), owners)


def join_batches(batches: Sequence[PixelBatch]) -> PixelBatch:
    """At least one batch, put one after the other."""
    if len(batches) == 1:
        return batches[0]
    images = accumulate((int(b.image_of_view_I[-1]) + 1 for b in batches[:-1]), initial=0)
    return PixelBatch(
        torch.cat([b.pixels_N for b in batches]),
        torch.cat([b.sizes_I2 for b in batches]),
        torch.cat([b.grids_I2 for b in batches]),
        torch.cat([b.image_of_view_I + first for b, first in zip(batches, images, strict=True)]),
    )


def by_size(batch: PixelBatch) -> list[tuple[list[int], PixelBatch]]:
    """The views of each size on their own: their indices, and a batch in which each is an image."""
    sizes = list(map(tuple, batch.sizes_I2.tolist()))
    if len(set(sizes)) == 1:
        return [(list(range(len(sizes))), batch)]
    views, parts = batch.views(), []
    for size in dict.fromkeys(sizes):
        same = [i for i, other in enumerate(sizes) if other == size]
        pixels_N = torch.cat([views[i].flatten() for i in same])
        meta = batch.sizes_I2[same], batch.grids_I2[same], torch.arange(len(same))
        parts.append((same, PixelBatch(pixels_N, *meta)))
    return parts


def joined(parts: Sequence[tuple[list[int], VisionFeatures]], batch: PixelBatch) -> VisionFeatures:
    """What an encoder saw in the parts of `by_size`, in the order of the batch."""
    if len(parts) == 1:
        return parts[0][1]
    patches: dict[int, Tensor] = {}
    vectors: dict[int, Tensor] = {}
    for of_views, seen in parts:
        patches.update(zip(of_views, seen.views(), strict=True))
        if seen.pooled_BE is not None:
            vectors.update(zip(of_views, seen.pooled_BE, strict=True))
    patches_TV = torch.cat([patches[i] for i in range(len(patches))])
    pooled_BE = torch.stack([vectors[i] for i in first_indices(batch.image_of_view_I)]) if vectors else None
    return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)


def first_indices(image_of_view_I: Tensor) -> list[int]:
    """Index of each image's first view, which shows the whole image."""
    owners = image_of_view_I.tolist()
    return [i for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]


def first_patches(hidden_IPV: Tensor, prefix_tokens: int) -> Tensor:
    """Drop prefix tokens and flatten the views: (I, prefix + patches, V) to (T, V)."""
    return hidden_IPV[:, prefix_tokens:].flatten(0, 1)


def first_views(hidden_IPV: Tensor, image_of_view_I: Tensor) -> Tensor:
    """Tokens of each image's first view, which shows the whole image: (I, P, V) to (B, P, V)."""
    firsts = first_indices(image_of_view_I)
    return hidden_IPV if len(firsts) == len(hidden_IPV) else hidden_IPV[firsts]
