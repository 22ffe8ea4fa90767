"""Vision encoders: one contract (`base`), one thin file a family. Importing this package loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmkit.errors import unknown_name
from vlmkit.plugins import load_class

if TYPE_CHECKING:
    from vlmkit.encoders.base import VisionEncoder

ENCODERS: dict[str, str] = {
    "aimv2": "vlmkit.encoders.aimv2:AIMv2Encoder",
    "beit": "vlmkit.encoders.beit:BEiTEncoder",
    "clip": "vlmkit.encoders.clip:CLIPEncoder",
    "convnext": "vlmkit.encoders.convnext:ConvNextEncoder",
    "convnextv2": "vlmkit.encoders.convnext:ConvNextV2Encoder",
    "deit": "vlmkit.encoders.deit:DeiTEncoder",
    "dinov2": "vlmkit.encoders.dinov2:DINOv2Encoder",
    "dinov3": "vlmkit.encoders.dinov3:DINOv3Encoder",
    "dinov3_convnext": "vlmkit.encoders.dinov3_convnext:DINOv3ConvNextEncoder",
    "hf_vit": "vlmkit.encoders.hf_vit:HFViTEncoder",
    "internvit": "vlmkit.encoders.internvit:InternViTEncoder",
    "mae": "vlmkit.encoders.mae:MAEEncoder",
    "pixtral": "vlmkit.encoders.pixtral:PixtralEncoder",
    "qwen2_5_vl": "vlmkit.encoders.qwen2_5_vl:Qwen25VLEncoder",
    "qwen3_vl": "vlmkit.encoders.qwen3_vl:Qwen3VLEncoder",
    "sam_vit": "vlmkit.encoders.sam_vit:SAMEncoder",
    "siglip": "vlmkit.encoders.siglip:SigLIPEncoder",
    "siglip2_naflex": "vlmkit.encoders.siglip2_naflex:NaFlexEncoder",
    "swin": "vlmkit.encoders.swin:SwinEncoder",
    "swinv2": "vlmkit.encoders.swin:SwinV2Encoder",
    "timm": "vlmkit.encoders.timm_tower:TimmEncoder",
    "transformers": "vlmkit.encoders.any_transformers:TransformersEncoder",
    "vit": "vlmkit.encoders.vit:ViT",
}
# `model_type` of transformers to the family, where its class states no `model_types` (see `hf_facts.py`).
OTHER_TYPES = {
    "siglip2": "siglip2_naflex", "siglip2_vision_model": "siglip2_naflex", "pixtral": "pixtral",
    "qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl",
}  # fmt: skip


def encoder_class(name: str) -> type[VisionEncoder]:
    """The class behind a name from `ENCODERS`, or behind `package.module:Class`.

    Raises:
        UsageError: There is no such name or class, or the class is no `VisionEncoder`.
    """
    from vlmkit.encoders.base import VisionEncoder

    if name not in ENCODERS and ":" not in name:
        raise unknown_name("encoder", name, ENCODERS)
    return load_class(ENCODERS.get(name, name), VisionEncoder)  # type: ignore[type-abstract]


def family_of(model_type: str) -> str | None:
    """The encoder that takes a checkpoint of transformers' `model_type`; None where none is stated to."""
    if model_type in OTHER_TYPES:
        return OTHER_TYPES[model_type]
    for name in ENCODERS:
        cls = encoder_class(name)
        if model_type in (*getattr(cls, "model_types", ()), getattr(cls, "whole_type", "")):
            return name
    return None


__all__ = ["ENCODERS", "encoder_class", "family_of"]
