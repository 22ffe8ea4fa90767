"""AIMv2 (Fini et al. 2024, https://arxiv.org/abs/2411.14402).

Shapes: B images, P patches, V width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.hf import NOTHING, VIT_FIELDS, Defaults, HFEncoder, tiny_vit


class AIMv2Encoder(HFEncoder):
    """AIMv2 without a token in front; the retrieval vector is its attention head's, where it has one.

    The head of a checkpoint with a text half is read without the projection to the texts' space.
    """

    family = "aimv2"
    config_class, model_class = Aimv2VisionConfig, Aimv2VisionModel
    model_types, whole_type = ("aimv2_vision_model",), "aimv2"
    fields = (
        *VIT_FIELDS[:-1], "rms_norm_eps", "attention_dropout", "qkv_bias", "mlp_bias", "initializer_range",
        "use_head", "is_native",
    )  # fmt: skip
    leftover = r"^(text_model|visual_projection|text_projection)\.|^logit_scale$"
    renamed = ((r"^vision_model\.", ""),)
    embeddings_arguments, layers = NOTHING, "encoder.layers"
    norm, head, prefix_tokens = "rms_norm", ("head",), 0
    default = Defaults("crop", CLIP_MEAN, CLIP_STD)
    tiny = tiny_vit(layer_norm_eps=None, hidden_act="silu")

    def takes_any_side(self, config: Any) -> bool:
        """Computed positions do, learned ones not."""
        return bool(config.is_native)

    def vector_width(self, config: Any) -> int:
        """None without the attention head."""
        return config.hidden_size if config.use_head else 0

    def pool(self, last: Tensor) -> Tensor:
        """The attention head over the normalised patches."""
        vector_BV: Tensor = self.vision.head(self.vision.rms_norm(last))
        return vector_BV
