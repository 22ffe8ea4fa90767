"""The features of several scales of an image, joined channel by channel (S2); see `vlmkit/layouts/scales.py`.

Shapes: B images, I views of an image, R C rows and columns of a view, V width of the encoder, s a scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch
from vlmkit.errors import VlmkitError
from vlmkit_connectors import VisionFeatures


def image_features(encoder: VisionEncoder, batch: PixelBatch) -> VisionFeatures:
    """What an encoder sees in the images of a batch, with the scales of each image joined."""
    seen: VisionFeatures = encoder(encoder.move(batch))
    scales = encoder.spec.rule.scales
    return join_scales(seen, scales) if len(scales) > 1 else seen


def join_scales(features: VisionFeatures, scales: Sequence[int]) -> VisionFeatures:
    """Put the tiles of each scale together, average them to the grid of one view, and join the channels.

    As in the published wrapper (Shi et al. 2024, bfshi/scaling_on_scales), which averages by `area`.

    Args:
        features: Of images whose views are those of the layout `scales`: s * s views of equal grids a scale.
        scales: In the order of the views.

    Returns:
        One view an image, of width S * V; the pooled vectors, those of the whole image, unchanged.

    Raises:
        VlmkitError: The views are not those of the scales.
    """
    views = sum(scale**2 for scale in scales)
    grids = sorted(set(features.grids))
    images = len(features.grids_I2) // views
    owners = torch.arange(images).repeat_interleave(views)
    if len(grids) != 1 or not torch.equal(features.image_of_view_I, owners):
        raise VlmkitError(
            f"scales {list(scales)} need {views} views of one grid for each image; found "
            f"{len(features.grids_I2)} views of grids {grids[:5]}"
        )
    rows, cols = grids[0]
    patches_BIRCV = features.patches_TV.view(images, views, rows, cols, -1)
    parts = torch.split(patches_BIRCV, [scale**2 for scale in scales], dim=1)
    joined_BRCV = torch.cat([_merged(part, s) for part, s in zip(parts, scales, strict=True)], dim=-1)
    return VisionFeatures(
        joined_BRCV.flatten(0, 2),
        features.grids_I2[::views],
        features.image_of_view_I[::views],
        features.pooled_BE,
    )


def _merged(tiles: Tensor, scale: int) -> Tensor:
    """Tiles (B, s * s, R, C, V) to the average of their joined grid (B, R, C, V), in float32 as published."""
    if scale == 1:
        return tiles[:, 0]
    images, _, rows, cols, width = tiles.shape
    grid = tiles.view(images, scale, scale, rows, cols, width).permute(0, 5, 1, 3, 2, 4)
    joined = grid.reshape(images, width, scale * rows, scale * cols)
    return F.avg_pool2d(joined.float(), scale).to(tiles.dtype).permute(0, 2, 3, 1)
