"""Google's ViT as transformers computes it (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

from transformers import ViTConfig, ViTModel

from vlmkit.encoders.hf import DROPOUTS, HALF, VIT_FIELDS, Defaults, HFEncoder, facts, tiny_vit


class HFViTEncoder(HFEncoder):
    """ViT and DeiT without distillation; the retrieval vector is the CLS token that the classifier reads.

    The pooler of the checkpoints for ImageNet-21k, a layer above that token, is left out. Our own is `vit`.
    """

    family = "hf_vit"
    config_class, model_class, model_types = ViTConfig, ViTModel, ("vit",)
    model_arguments = facts(add_pooling_layer=False)
    fields = (*VIT_FIELDS, *DROPOUTS, "qkv_bias")
    leftover = r"^(vit\.)?(pooler|classifier|decoder)\.|mask_token$"
    layers = "layers"
    default = Defaults("square", HALF, HALF, "bilinear")
    tiny = tiny_vit()
