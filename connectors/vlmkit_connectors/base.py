"""The contracts between vision encoders and language models. Torch only.

Shapes: T patches of all views, V vision width, I views, B images, N image tokens, L text tokens,
D width of the language model, E width of the retrieval space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Grid = tuple[int, int]


@dataclass(frozen=True)
class VisionFeatures:
    """What one encoder saw in a batch of images, flat: nothing is padded, nothing computes on padding.

    A view is one picture that went through the encoder: the whole image, a tile or a thumbnail. Views come in
    order of their image; patches of a view are row-major.

    Attributes:
        patches_TV: Patch tokens of all views, in order; prefix tokens (CLS, registers) are dropped.
        grids_I2: Rows and columns of each view (int64, on the CPU).
        image_of_view_I: Index of the image each view belongs to (int64, on the CPU).
        pooled_BE: One vector an image in the retrieval space, not normalised; None if the encoder has none.
    """

    patches_TV: Tensor
    grids_I2: Tensor
    image_of_view_I: Tensor
    pooled_BE: Tensor | None = None

    def __post_init__(self) -> None:
        stated = int(self.grids_I2.prod(dim=1).sum())
        if stated != self.patches_TV.shape[0] or len(self.grids_I2) != len(self.image_of_view_I):
            raise ValueError(
                f"{len(self.grids_I2)} grids state {stated} patches, the encoder gave "
                f"{len(self.patches_TV)} patches for {len(self.image_of_view_I)} views: "
                "its spec does not describe it"
            )

    @property
    def grids(self) -> list[Grid]:
        """The grids as integers: [(rows, columns), ...], one a view."""
        return [(int(r), int(c)) for r, c in self.grids_I2.tolist()]

    def views(self) -> tuple[Tensor, ...]:
        """Patches of each view on their own, shape (rows * columns, V)."""
        return tuple(torch.split(self.patches_TV, [r * c for r, c in self.grids]))


@dataclass(frozen=True)
class ImageTokens:
    """What a connector hands to the language model.

    Attributes:
        tokens_ND: Image tokens of all views, in order.
        counts: Tokens of each view; sums to N.
    """

    tokens_ND: Tensor
    counts: tuple[int, ...]


class Connector(nn.Module, ABC):
    """Turns patch tokens into tokens of the language model.

    A subclass takes plain keyword arguments, among them `vision_widths` (one an encoder) and `text_width`,
    and states its token count without a forward pass. Tables that are computed go into `reset_buffers`,
    parameters are initialised in `reset_parameters`: loading from a checkpoint relies on both.
    """

    @abstractmethod
    def num_tokens(self, grid: Grid) -> int:
        """Image tokens for a view of `grid` = (rows, columns) patches."""

    def token_grid(self, grid: Grid) -> Grid | None:
        """Rows and columns of the tokens of such a view, row by row; None where they form no grid.

        Layouts that put tiles together (`anyres`) need one.
        """
        return None

    @abstractmethod
    def forward(self, features: Sequence[VisionFeatures], text: Tensor | None = None) -> ImageTokens:
        """Map the features of one or more encoders to image tokens.

        Args:
            features: One entry an encoder, all of the same images.
            text: Embedded question, for connectors that look at it; shape (B, L, D).
        """

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the module's own parameters; submodules have their own."""

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Recompute tables that are not stored in checkpoints."""
