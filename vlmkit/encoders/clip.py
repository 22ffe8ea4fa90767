"""CLIP's vision half (Radford et al. 2021, https://arxiv.org/abs/2103.00020), as transformers computes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vlmkit.encoders.hf import NO_MASK, VIT_FIELDS, Defaults, HFEncoder, tiny_vit
from vlmkit.encoders.hub import read_config
from vlmkit.encoders.processors import stated_layout

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPEncoder(HFEncoder):
    """CLIP's vision transformer; the retrieval vector is the projected CLS token of the last block."""

    family = "clip"
    config_class, model_class = CLIPVisionConfig, CLIPVisionModelWithProjection
    model_types, whole_type = ("clip_vision_model",), "clip"
    fields = (
        *VIT_FIELDS, "projection_dim", "attention_dropout", "initializer_range", "initializer_factor",
    )  # fmt: skip
    leftover = r"^text_model\.|^text_projection\.|^logit_scale$|\.position_ids$"
    layers, layer_arguments = "vision_model.encoder.layers", NO_MASK
    norm, head = "vision_model.post_layernorm", ("visual_projection",)
    has_text, cuts_side = True, True
    default = Defaults("crop", CLIP_MEAN, CLIP_STD)
    tiny = tiny_vit(projection_dim=16)

    def vector_width(self, config: Any) -> int:
        """Width of the space that is shared with texts."""
        return int(config.projection_dim)

    def embed(self, pixels_ICHW: Tensor) -> Tensor:
        """See `HFEncoder.embed`."""
        tower = self.vision.vision_model
        embedded: Tensor = tower.pre_layrnorm(tower.embeddings(pixels_ICHW, interpolate_pos_encoding=True))
        return embedded

    def pool(self, last: Tensor) -> Tensor:
        """The projected, normalised CLS token."""
        vector_BE: Tensor = self.vision.visual_projection(super().pool(last))
        return vector_BE

    @classmethod
    def read(cls, weights: str, given: Collection[str]) -> dict[str, Any]:
        """See `HFEncoder.read`."""
        found = super().read(weights, given)
        # The number that counts is the whole model's; the halves' own is often a default that was never used.
        found["vision_config"]["projection_dim"] = read_config(weights).projection_dim
        return found

    @classmethod
    def stated_views(cls, stored: Mapping[str, Any], given: Collection[str], tower: Any) -> dict[str, Any]:
        """See `HFEncoder.stated_views`; without a stored processor, CLIP's own preprocessing."""
        return {} if "layout" in given else {"layout": stated_layout(stored, tower.image_size)}
