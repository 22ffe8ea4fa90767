"""The encoder of a masked autoencoder (He et al. 2021, https://arxiv.org/abs/2111.06377), seeing everything.

Shapes: I views, P patches, C H W a view's pixels, V width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEModel

from vlmkit.encoders.hf import DROPOUTS, VIT_FIELDS, HFEncoder, facts, tiny_vit


class MAEEncoder(HFEncoder):
    """ViT-MAE without its decoder: no patch is masked and none changes its place; pooled by the CLS token.

    That token, normalised, is what MAE's linear probe reads.
    """

    family = "mae"
    config_class, model_class, model_types = ViTMAEConfig, ViTMAEModel, ("vit_mae",)
    fields = (*VIT_FIELDS, *DROPOUTS, "qkv_bias")
    fixed = facts(mask_ratio=0.0)
    leftover = r"^decoder\.|mask_token$"
    layers = "layers"
    tiny = tiny_vit()

    def embed(self, pixels_ICHW: Tensor) -> Tensor:
        """Noise that rises keeps the order: transformers sorts patches by it, by random one otherwise."""
        (side, _), patch = pixels_ICHW.shape[2:], self.spec.patch_size
        rising_P = torch.arange((side // patch) ** 2, device=pixels_ICHW.device)
        noise_IP = rising_P.expand(len(pixels_ICHW), -1)
        moved = side != self.vision.config.image_size
        embedded: Tensor = self.vision.embeddings(pixels_ICHW, noise_IP, interpolate_pos_encoding=moved)[0]
        return embedded
