"""Published towers without a text half, by hub id; see `known.py`.

Sizes and preprocessing are those that transformers' conversion scripts write. Two things they leave open are
taken from the original code: DeiT's crop, and MAE's mean, deviation and interpolation. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmkit.encoders.colours import IMAGENET


@dataclass(frozen=True)
class Known:
    """A published checkpoint.

    Attributes:
        family: The encoder that takes it.
        arguments: What it states of that encoder's constructor arguments.
        text: Whether its text half shares the retrieval space.
    """

    family: str
    arguments: dict[str, Any]
    text: bool = True


def size(width: int, hidden: int, depth: int, heads: int) -> dict[str, Any]:
    """Fields of a transformer: width, width of the MLP, blocks and heads."""
    return {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }  # fmt: skip


TINY, SMALL = size(192, 768, 12, 3), size(384, 1536, 12, 6)
BASE, LARGE, HUGE = size(768, 3072, 12, 12), size(1024, 4096, 24, 16), size(1280, 5120, 32, 16)
DEIT = {"layout": "crop", "image_size": 224, "shortest_edge": 256, "resample": "bicubic"}
AIMV2 = size(1024, 2816, 24, 8)


def _tower(family: str, shape: dict[str, Any], side: int, patch: int, **more: Any) -> Known:
    """`more` are options of the constructor."""
    return Known(
        family, {"vision_config": {**shape, "image_size": side, "patch_size": patch}, **more}, text=False
    )


def _dinov2(width: int, depth: int, heads: int, registers: int) -> Known:
    config = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    config |= {"num_register_tokens": registers}
    return _tower("dinov2", config, 518, 14, image_size=224, shortest_edge=256)


def _dinov3(shape: dict[str, Any]) -> Known:
    return _tower("dinov3", {**shape, "num_register_tokens": 4}, 224, 16)


def _beit(shape: dict[str, Any], side: int) -> Known:
    return _tower("beit", {**shape, "use_relative_position_bias": True}, side, 16, resample="bilinear")


def _sam(width: int, depth: int, heads: int, seeing_all: list[int]) -> Known:
    config: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": depth}
    config |= {"num_attention_heads": heads, "mlp_dim": 4 * width, "global_attn_indexes": seeing_all}
    return _tower("sam_vit", config, 1024, 16)


def _swin(family: str, width: int, heads: int, middle: int, window: int, side: int) -> Known:
    config = {"embed_dim": width, "depths": [2, 2, middle, 2], "window_size": window}
    return _tower(family, {**config, "num_heads": [heads, 2 * heads, 4 * heads, 8 * heads]}, side, 4)


def _convnext(family: str, width: int, third: int) -> Known:
    """Views of 224 pixels; the middle of a picture of 256."""
    config = {"hidden_sizes": [width << stage for stage in range(4)], "depths": [3, 3, third, 3]}
    if family == "dinov3_convnext":
        return Known(family, {"vision_config": config}, text=False)
    return _tower(family, config, 224, 4, layout="crop", shortest_edge=256)


def _internvit() -> Known:
    """InternViT-300M, in the smaller InternVL models."""
    return _tower("internvit", {**LARGE, "attention_bias": True}, 448, 14)


TOWERS: dict[str, Known] = {
    "facebook/dinov2-small": _dinov2(384, 12, 6, 0),
    "facebook/dinov2-base": _dinov2(768, 12, 12, 0),
    "facebook/dinov2-large": _dinov2(1024, 24, 16, 0),
    "facebook/dinov2-with-registers-small": _dinov2(384, 12, 6, 4),
    "facebook/dinov2-with-registers-base": _dinov2(768, 12, 12, 4),
    "facebook/dinov2-with-registers-large": _dinov2(1024, 24, 16, 4),
    "facebook/dinov3-vits16-pretrain-lvd1689m": _dinov3(SMALL),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": _dinov3(BASE),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": _dinov3(LARGE),
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": _convnext("dinov3_convnext", 96, 9),
    "facebook/dinov3-convnext-small-pretrain-lvd1689m": _convnext("dinov3_convnext", 96, 27),
    "facebook/dinov3-convnext-base-pretrain-lvd1689m": _convnext("dinov3_convnext", 128, 27),
    "facebook/dinov3-convnext-large-pretrain-lvd1689m": _convnext("dinov3_convnext", 192, 27),
    "facebook/vit-mae-base": _tower("mae", BASE, 224, 16),
    "facebook/vit-mae-large": _tower("mae", LARGE, 224, 16),
    "facebook/vit-mae-huge": _tower("mae", HUGE, 224, 14),
    "microsoft/beit-base-patch16-224": _beit(BASE, 224),
    "microsoft/beit-base-patch16-384": _beit(BASE, 384),
    "microsoft/beit-large-patch16-224": _beit(LARGE, 224),
    "google/vit-base-patch16-224": _tower("hf_vit", BASE, 224, 16),
    "google/vit-base-patch16-224-in21k": _tower("hf_vit", BASE, 224, 16),
    "google/vit-base-patch16-384": _tower("hf_vit", BASE, 384, 16),
    "google/vit-large-patch16-224": _tower("hf_vit", LARGE, 224, 16),
    "facebook/deit-small-patch16-224": _tower("hf_vit", SMALL, 224, 16, **DEIT, **IMAGENET),
    "facebook/deit-base-patch16-224": _tower("hf_vit", BASE, 224, 16, **DEIT, **IMAGENET),
    "facebook/deit-tiny-distilled-patch16-224": _tower("deit", TINY, 224, 16, **DEIT),
    "facebook/deit-small-distilled-patch16-224": _tower("deit", SMALL, 224, 16, **DEIT),
    "facebook/deit-base-distilled-patch16-224": _tower("deit", BASE, 224, 16, **DEIT),
    "microsoft/swin-tiny-patch4-window7-224": _swin("swin", 96, 3, 6, 7, 224),
    "microsoft/swin-small-patch4-window7-224": _swin("swin", 96, 3, 18, 7, 224),
    "microsoft/swin-base-patch4-window7-224": _swin("swin", 128, 4, 18, 7, 224),
    "microsoft/swin-base-patch4-window12-384": _swin("swin", 128, 4, 18, 12, 384),
    "microsoft/swinv2-tiny-patch4-window8-256": _swin("swinv2", 96, 3, 6, 8, 256),
    "microsoft/swinv2-small-patch4-window8-256": _swin("swinv2", 96, 3, 18, 8, 256),
    "microsoft/swinv2-base-patch4-window8-256": _swin("swinv2", 128, 4, 18, 8, 256),
    "facebook/convnext-tiny-224": _convnext("convnext", 96, 9),
    "facebook/convnext-small-224": _convnext("convnext", 96, 27),
    "facebook/convnext-base-224": _convnext("convnext", 128, 27),
    "facebook/convnextv2-tiny-1k-224": _convnext("convnextv2", 96, 9),
    "facebook/convnextv2-base-22k-224": _convnext("convnextv2", 128, 27),
    "facebook/convnextv2-large-22k-224": _convnext("convnextv2", 192, 27),
    "facebook/sam-vit-base": _sam(768, 12, 12, [2, 5, 8, 11]),
    "facebook/sam-vit-large": _sam(1024, 24, 16, [5, 11, 17, 23]),
    "facebook/sam-vit-huge": _sam(1280, 32, 16, [7, 15, 23, 31]),
    "OpenGVLab/InternVL3-1B-hf": _internvit(),
    "OpenGVLab/InternVL3-2B-hf": _internvit(),
    "OpenGVLab/InternVL3-8B-hf": _internvit(),
    "apple/aimv2-large-patch14-224": _tower("aimv2", {**AIMV2, "use_head": False}, 224, 14),
    "apple/aimv2-large-patch14-224-lit": _tower("aimv2", {**AIMV2, "use_head": True}, 224, 14),
}
