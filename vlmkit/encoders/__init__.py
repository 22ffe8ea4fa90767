"""Vision encoders: one contract (`base`), one thin file a family. Importing this package loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmkit.errors import unknown_name
from vlmkit.plugins import load_class

if TYPE_CHECKING:
    from vlmkit.encoders.base import VisionEncoder

ENCODERS: dict[str, str] = {
    "clip": "vlmkit.encoders.clip:CLIPEncoder",
    "dinov2": "vlmkit.encoders.dinov2:DINOv2Encoder",
    "pixtral": "vlmkit.encoders.pixtral:PixtralEncoder",
    "qwen2_5_vl": "vlmkit.encoders.qwen2_5_vl:Qwen25VLEncoder",
    "qwen3_vl": "vlmkit.encoders.qwen3_vl:Qwen3VLEncoder",
    "siglip": "vlmkit.encoders.siglip:SigLIPEncoder",
    "siglip2_naflex": "vlmkit.encoders.siglip2_naflex:NaFlexEncoder",
    "vit": "vlmkit.encoders.vit:ViT",
}


def encoder_class(name: str) -> type[VisionEncoder]:
    """The class behind a name from `ENCODERS`, or behind `package.module:Class`.

    Raises:
        UsageError: There is no such name or class, or the class is no `VisionEncoder`.
    """
    from vlmkit.encoders.base import VisionEncoder

    if name not in ENCODERS and ":" not in name:
        raise unknown_name("encoder", name, ENCODERS)
    return load_class(ENCODERS.get(name, name), VisionEncoder)  # type: ignore[type-abstract]


__all__ = ["ENCODERS", "encoder_class"]
