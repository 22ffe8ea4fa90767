"""Our own Vision Transformer: pre-norm blocks, learned positions, two stems, three poolings.

Dosovitskiy et al. 2020 (https://arxiv.org/abs/2010.11929).

Shapes: I views, B images, P prefix + patches, T patches of all views, V width, E retrieval width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_patches, first_views
from vlmkit.encoders.spec import Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.vit_parts import INIT_STD, Block, ConvStem, MapHead, PatchStem
from vlmkit.errors import UsageError, unknown_name
from vlmkit.weights import resolve_weights
from vlmkit_connectors import VisionFeatures

STEMS = ("patch", "conv")
POOLS = ("cls", "mean", "map")


class ViT(VisionEncoder):
    """A ViT for views of `image_size` x `image_size` pixels.

    Args:
        image_size: Side of a view in pixels.
        patch_size: Side of a patch; with `stem="conv"` a power of two, reached by stride-2 convolutions.
        width: Width of the tokens.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        stem: `patch` for one convolution, `conv` for a stack of 3x3 stride-2 convolutions.
        pool: How the retrieval vector comes from the tokens: `cls`, `mean` or `map`.
        embed_dim: Width of the retrieval space; 0 for none.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`). The last one is normalised.
        layout: Name of the image layout.
        text_tower: Weights reference of the frozen text tower that shares the retrieval space.
        weights: Folder of a vlmkit run whose encoder `from_options` loads.
    """

    family: ClassVar[str] = "vit"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        stem: Literal["patch", "conv"] = "patch",
        pool: Literal["cls", "mean", "map"] = "mean",
        embed_dim: int = 0,
        layer: int = -1,
        layout: Stated = "square",
        text_tower: str | None = None,
        weights: str | None = None,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "weights")}
        super().__init__(arguments, text_tower, weights)
        _check_names(stem, pool)
        _check_sizes(image_size, patch_size, width, heads, stem)
        self.pool = pool
        self.blocks_run = hidden_state_index(self.family, layer, depth)
        prefix = int(pool == "cls")
        self.spec = VisionSpec(
            image_size, patch_size, width, prefix, layer, layout=layout, embed_dim=embed_dim,
        )  # fmt: skip
        self.stem = ConvStem(patch_size, width) if stem == "conv" else PatchStem(patch_size, width)
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2, width))
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if pool == "cls" else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.map_head = MapHead(width, heads) if pool == "map" else None
        self.head = nn.Linear(width, embed_dim, bias=False) if embed_dim else None
        self.reset_parameters()

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `VisionEncoder.tiny_options`."""
        return {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Positions and CLS from a normal distribution of deviation 0.02."""
        nn.init.trunc_normal_(self.positions, std=INIT_STD)
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=INIT_STD)

    def load(self, weights: str) -> None:
        """Load the encoder of a vlmkit run; see `VisionEncoder.load`."""
        from vlmkit.checkpoint import load_part

        load_part(self, Path(resolve_weights(weights)), "encoders.0.")

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Blocks above the selected layer run only for the retrieval vector."""
        hidden_IPV = self.stem(batch.pixels_ICHW) + self.positions
        if self.cls is not None:
            hidden_IPV = torch.cat([self.cls.expand(len(hidden_IPV), -1, -1), hidden_IPV], dim=1)
        last = len(self.blocks)
        selected_IPV = hidden_IPV
        for i, block in enumerate(self.blocks[: last if self.head is not None else self.blocks_run], start=1):
            hidden_IPV = block(hidden_IPV)
            selected_IPV = hidden_IPV if i == self.blocks_run else selected_IPV
        normed_IPV = self.norm(hidden_IPV)
        if self.blocks_run == last:
            selected_IPV = normed_IPV
        patches_TV = first_patches(selected_IPV, self.spec.prefix_tokens)
        pooled_BE = self._pooled(first_views(normed_IPV, batch.image_of_view_I))
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)

    def _pooled(self, normed_BPV: Tensor) -> Tensor | None:
        """The retrieval vector of each image."""
        if self.head is None:
            return None
        if self.map_head is not None:
            vector_BV = self.map_head(normed_BPV)
        else:
            vector_BV = normed_BPV[:, 0] if self.pool == "cls" else normed_BPV.mean(1)
        vector_BE: Tensor = self.head(vector_BV)
        return vector_BE


def _check_names(stem: str, pool: str) -> None:
    if stem not in STEMS:
        raise unknown_name("vit stem", stem, STEMS)
    if pool not in POOLS:
        raise unknown_name("vit pool", pool, POOLS)


def _check_sizes(image: int, patch: int, width: int, heads: int, stem: str) -> None:
    if patch < 1 or image < 1 or image % patch:
        raise UsageError(f"vit: image_size {image} is not a multiple of patch_size {patch}")
    if heads < 1 or width < 1 or width % heads:
        raise UsageError(f"vit: width {width} is not a multiple of heads {heads}")
    if stem == "conv" and (patch < 2 or patch & (patch - 1)):
        raise UsageError(f"vit: stem 'conv' halves the picture; found patch_size {patch}, give 2, 4, 8, ...")
