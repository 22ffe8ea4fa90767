"""SigLIP's vision half, and that of SigLIP 2 at fixed resolution, as transformers computes them.

Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from vlmkit.encoders.hf import HALF, NO_MASK, VIT_FIELDS, Defaults, HFEncoder, tiny_vit
from vlmkit.encoders.processors import stated_layout
from vlmkit.encoders.tower import stated

NOT_VISION = [r"^text_model\.", r"^logit_scale$", r"^logit_bias$", r"\.position_ids$"]


class SigLIPEncoder(HFEncoder):
    """SigLIP's vision transformer, SigLIP 2 at fixed resolution too; pooled by its attention head.

    There is no CLS token: every token is a patch. SigLIP interpolates bicubically, SigLIP 2 bilinearly.
    """

    family = "siglip"
    config_class, model_class = SiglipVisionConfig, SiglipVisionModel
    model_types, whole_type = ("siglip_vision_model",), "siglip"
    fields = (*VIT_FIELDS, "attention_dropout", "vision_use_head")
    leftover = "|".join(NOT_VISION)
    layers, layer_arguments = "encoder.layers", NO_MASK
    norm, head, prefix_tokens = "post_layernorm", ("head",), 0
    has_text, cuts_side = True, True
    default = Defaults("square", HALF, HALF)
    tiny = tiny_vit()

    def vector_width(self, config: Any) -> int:
        """None without the attention head."""
        return config.hidden_size if stated(config, ["vision_use_head"])["vision_use_head"] else 0

    def pool(self, last: Tensor) -> Tensor:
        """The attention head over the normalised patches."""
        vector_BE: Tensor = self.vision.head(self.vision.post_layernorm(last))
        return vector_BE

    @classmethod
    def stated_views(cls, stored: Mapping[str, Any], given: Collection[str], tower: Any) -> dict[str, Any]:
        """See `HFEncoder.stated_views`."""
        wanted = stored and "layout" not in given
        return {"layout": stated_layout(stored, tower.image_size)} if wanted else {}
