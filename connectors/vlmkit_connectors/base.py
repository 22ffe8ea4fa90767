"""The contracts between vision encoders and language models. Torch only.

Shapes: T patches of all views, V vision width, I views, P most patches of a view, B images (or rows of the
language model), N image tokens, L text tokens, M most image tokens of a row, D width of the language model,
W width of image tokens that blocks look at, E width of the retrieval space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Grid = tuple[int, int]
# Keys and values of one block for the image tokens of each row, whatever shape the block gives them.
Memory = tuple[Tensor, Tensor]
# The embedded question of each image, (L, D) each, without padding.
Questions = Sequence[Tensor]


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

    @classmethod
    def from_padded(
        cls, patches_IPV: Tensor, mask_IP: Tensor, grids_I2: Tensor, image_of_view_I: Tensor
    ) -> VisionFeatures:
        """From views that are padded to one length, as other libraries keep them.

        Args:
            patches_IPV: Patches, row-major, with padding anywhere.
            mask_IP: True where a patch is one.
            grids_I2: Rows and columns of each view.
            image_of_view_I: Index of the image each view belongs to.
        """
        return cls(patches_IPV[mask_IP.bool()], grids_I2, image_of_view_I)


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

    Attributes:
        source: The paper and its address, one line.
        reads_text: Whether image tokens depend on the question; the model then hands it to `forward`.
        in_sequence: Whether the tokens enter the sequence; those of a `LayerInjection` do not.
        for_each: Whether it is one connector for each encoder (`Groups`).
    """

    source: ClassVar[str] = ""
    reads_text: bool = False
    in_sequence: ClassVar[bool] = True
    for_each: ClassVar[bool] = False

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Options of a small twin, for widths of 16 and more; options that are not named are kept."""
        return {}

    @abstractmethod
    def num_tokens(self, grid: Grid) -> int:
        """Image tokens for a view of `grid` = (rows, columns) patches."""

    def token_grid(self, grid: Grid) -> Grid | None:
        """Rows and columns of the tokens of such a view, row by row; None where they form no grid.

        Layouts that put tiles together (`anyres`) need one.
        """
        return None

    @abstractmethod
    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """Map the features of one or more encoders to image tokens.

        Args:
            features: One entry an encoder, all of the same images.
            text: Where `reads_text`: the question of each image, in the language model's embeddings.
        """

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the module's own parameters; submodules have their own."""

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Recompute tables that are not stored in checkpoints."""


class InjectedBlock(nn.Module, ABC):
    """Runs before a decoder layer and adds what the text sees in its images."""

    @abstractmethod
    def remember(self, tokens_BMW: Tensor) -> Memory:
        """Keys and values of image tokens: computed once, kept beside the cache while text is generated."""

    @abstractmethod
    def forward(self, hidden_BLD: Tensor, memory: Memory, seen_BLM: Tensor) -> Tensor:
        """Hidden states with the images in them; while the gates are zero, `hidden_BLD` bit for bit.

        A text token that sees no image gets nothing from the images; M may be 0.

        Args:
            hidden_BLD: Hidden states that go into the decoder layer.
            memory: From `remember`.
            seen_BLM: bool; which image tokens each text token may look at.
        """


class LayerInjection(Connector):
    """A connector whose tokens stay outside the sequence: blocks inside the language model look at them.

    In the sequence an image is one marker token, whatever its resolution. `forward` gives the tokens that
    the blocks look at, of width W. A subclass takes also `text_layers`, the number of decoder layers, and
    fills `blocks`; the layers themselves, their parameters and their names stay as they are.

    Attributes:
        blocks: The block before decoder layer n, under the name `n` (from 0).
        seen_width: Width W of the tokens that the blocks look at.
        marker_D: Added to the language model's own embedding of the marker; zero at first.
        sees_run: Of images whose markers stand side by side a later text token sees all, as in Mllama;
            else only the last one, as in Flamingo. Earlier images are never seen.
    """

    in_sequence = False
    sees_run: bool = False

    def __init__(self, text_width: int, seen_width: int) -> None:
        super().__init__()
        self.seen_width = seen_width
        self.marker_D = nn.Parameter(torch.zeros(text_width))
        self.blocks = nn.ModuleDict()

    def each(self) -> dict[int, InjectedBlock]:
        """The blocks by the number of the decoder layer that they run before."""
        return {int(name): b for name, b in self.blocks.items() if isinstance(b, InjectedBlock)}
