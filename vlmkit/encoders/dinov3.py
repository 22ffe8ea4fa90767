"""DINOv3's vision transformers (Siméoni et al. 2025, https://arxiv.org/abs/2508.10104).

Shapes: I views, C H W a view's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from vlmkit.encoders.hf import NOTHING, VIT_FIELDS, Block, Defaults, HFEncoder, tiny_vit


class DINOv3Encoder(HFEncoder):
    """DINOv3, registers dropped with the CLS token, which is the retrieval vector after the last norm.

    Positions are rotary: `image_size` may be any multiple of the patch. Its own processor interpolates with
    torchvision, after scaling; Pillow's rounds to bytes between the two.
    """

    family, any_grid = "dinov3", True
    config_class, model_class, model_types = DINOv3ViTConfig, DINOv3ViTModel, ("dinov3_vit",)
    fields = (
        *VIT_FIELDS, "attention_dropout", "initializer_range", "rope_theta", "query_bias", "key_bias",
        "value_bias", "proj_bias", "mlp_bias", "layerscale_value", "drop_path_rate", "use_gated_mlp",
        "num_register_tokens", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale",
    )  # fmt: skip
    embeddings_arguments, layers, norm = NOTHING, "model.layer", "norm"
    default = Defaults(resample="bilinear")
    tiny = tiny_vit(num_register_tokens=2)

    def prefix(self, config: Any) -> int:
        """CLS and registers."""
        return 1 + int(config.num_register_tokens)

    def blocks(self, pixels_ICHW: Tensor) -> Sequence[Block]:
        """The blocks, rotating by the places of the patches."""
        places = self.vision.rope_embeddings(pixels_ICHW)
        return [partial(block, position_embeddings=places) for block in self.part(self.layers)]
