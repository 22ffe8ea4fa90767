"""Several encoders on one image: channels joined, tokens interleaved, or one group of tokens after another.

Shapes: T patches of all views, V vision width, I views of one grid, R C its rows and columns, N image tokens,
D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.interpolate import interpolate
from vlmkit_connectors.views import map_views


def resample(features: VisionFeatures, like: VisionFeatures) -> VisionFeatures:
    """Bring the grids of one encoder to those of another that sees the same views.

    See `resize`; equal grids pass through.

    Raises:
        ValueError: The encoders see different views.
    """
    same_views(features, like)
    if features.grids == like.grids:
        return features
    # Of the other encoder only the grids count: no channels.
    places = replace(like, patches_TV=like.patches_TV[:, :0])
    resized = map_views([features, places], _resize_to)
    return VisionFeatures(resized.tokens_ND, like.grids_I2, like.image_of_view_I, features.pooled_BE)


def same_views(features: VisionFeatures, like: VisionFeatures) -> None:
    """Refuse features of two encoders that do not see the same views of the same images.

    Raises:
        ValueError: They do not.
    """
    if features.image_of_view_I.tolist() != like.image_of_view_I.tolist():
        raise ValueError(
            f"fused encoders need the same views, found {_brief(like)} and {_brief(features)}; give all "
            "encoders the same layout and options, or use fusion: groups"
        )


def resize(patches_IRCV: Tensor, grid: Grid) -> Tensor:
    """The same views on another grid; computed in float32.

    Bilinear, pixel centres aligned as for images, antialiased where a grid shrinks; equal grids pass through.
    """
    if patches_IRCV.shape[1:3] == grid:
        return patches_IRCV
    resized = interpolate(patches_IRCV.float().permute(0, 3, 1, 2), grid, "bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).to(patches_IRCV.dtype)


def _resize_to(views: Sequence[Tensor]) -> Tensor:
    """Views (I, R, C, V) on the grid of others: (I, rows * columns, V)."""
    view_IRCV, other_IRCV = views
    return resize(view_IRCV, (other_IRCV.shape[1], other_IRCV.shape[2])).flatten(1, 2)


def concat_encoders(features: Sequence[VisionFeatures]) -> VisionFeatures:
    """Concatenate the channels of several encoders on the grid of the first; one encoder passes through.

    With DINOv2 and SigLIP this is Prismatic's fused backbone (Karamcheti et al. 2024,
    https://arxiv.org/abs/2402.07865), which needs equal grids; here others are resampled, see `resample`.

    Raises:
        ValueError: The encoders see different views.
    """
    first = features[0]
    if len(features) == 1:
        return first
    patches = [first.patches_TV, *(resample(other, first).patches_TV for other in features[1:])]
    return VisionFeatures(torch.cat(patches, dim=-1), first.grids_I2, first.image_of_view_I, first.pooled_BE)


class Interleaved(Connector):
    """A connector for each encoder, on the grid of the first one; their tokens of a view alternate.

    Mixture of features as in Tong et al. 2024 (https://arxiv.org/abs/2401.06209). The tokens form no grid.
    Those that stand side by side have the same number in their encoders' views. Where members keep the grid
    (`token_grid`) they are of one place; tokens of latents, queries or merged patches have no place.

    Args:
        members: One connector an encoder, each for one width.
    """

    def __init__(self, members: Sequence[Connector]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.reads_text = any(member.reads_text for member in members)

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return sum(member.num_tokens(grid) for member in _connectors(self.members))

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`."""
        seen = [features[0], *(resample(other, features[0]) for other in features[1:])]
        tokens = [member([own], text) for member, own in zip(_connectors(self.members), seen, strict=True)]
        alternating_ND = torch.stack([t.tokens_ND for t in tokens], dim=1).flatten(0, 1)
        return ImageTokens(alternating_ND, tuple(len(tokens) * count for count in tokens[0].counts))


class Groups(nn.ModuleList):
    """A connector for each encoder; an image's tokens of one encoder follow those of the one before.

    Each encoder keeps its own layout and grids, so this is no `Connector` for one grid.
    """

    in_sequence: ClassVar[bool] = True
    for_each: ClassVar[bool] = True

    def each(self) -> list[Connector]:
        """The connectors, one an encoder."""
        return _connectors(self)

    @property
    def reads_text(self) -> bool:
        """See `Connector.reads_text`."""
        return any(member.reads_text for member in self.each())


def _connectors(members: nn.ModuleList) -> list[Connector]:
    return [member for member in members if isinstance(member, Connector)]


def _brief(features: VisionFeatures) -> str:
    shapes = sorted({f"{rows}x{cols}" for rows, cols in features.grids})
    return f"{len(features.grids)} views of {', '.join(shapes)}"
