"""DeiT with a distillation token (Touvron et al. 2020, https://arxiv.org/abs/2012.12877)."""

from __future__ import annotations

from transformers import DeiTConfig, DeiTModel

from vlmkit.encoders.hf import DROPOUTS, VIT_FIELDS, Defaults, HFEncoder, facts, tiny_vit


class DeiTEncoder(HFEncoder):
    """Distilled DeiT: CLS and distillation token are dropped; the retrieval vector is the normalised CLS.

    Its own preprocessing is `crop` with a `shortest_edge` of 256 for views of 224; transformers' processor
    squashes to 256 x 256 instead, which no layout does. Without distillation it is a plain ViT: `hf_vit`.
    """

    family = "deit"
    config_class, model_class, model_types = DeiTConfig, DeiTModel, ("deit",)
    model_arguments = facts(add_pooling_layer=False)
    fields = (*VIT_FIELDS, *DROPOUTS, "qkv_bias")
    leftover = r"^(deit\.)?(pooler|classifier|cls_classifier|distillation_classifier|decoder)\.|mask_token$"
    layers, prefix_tokens = "layers", 2
    default = Defaults("crop")
    tiny = tiny_vit()
