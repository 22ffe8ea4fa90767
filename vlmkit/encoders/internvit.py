"""InternViT, the tower of InternVL (Chen et al. 2023, https://arxiv.org/abs/2312.14238), as in transformers.

Shapes: B images, P 1 + patches, V width.
"""

from __future__ import annotations

from transformers.models.internvl import InternVLVisionConfig, InternVLVisionModel

from vlmkit.encoders.hf import NOTHING, VIT_FIELDS, Defaults, HFEncoder, tiny_vit


class InternViTEncoder(HFEncoder):
    """InternViT out of an InternVL checkpoint in transformers' format; InternVL feeds the last layer.

    The retrieval vector is the CLS token of the last block, as the published InternViT returns it; it was not
    trained for retrieval in the checkpoints that end in `-hf`.
    """

    family = "internvit"
    config_class, model_class = InternVLVisionConfig, InternVLVisionModel
    model_types, whole_type = ("internvl_vision",), "internvl"
    fields = (
        *VIT_FIELDS, "hidden_dropout_prob", "attention_dropout", "projection_dropout", "initializer_range",
        "attention_bias", "use_qk_norm", "norm_type", "use_mask_token", "use_mean_pooling",
        "use_absolute_position_embeddings", "layer_scale_init_value",
    )  # fmt: skip
    leftover = r"^(model\.)?(language_model|multi_modal_projector|lm_head)\."
    renamed = ((r"^(model\.)?vision_tower\.", ""),)
    embeddings_arguments, layers = NOTHING, "encoder.layer"
    default = Defaults(layer=-1)
    tiny = tiny_vit()
