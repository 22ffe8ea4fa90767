"""timm's vision transformers: options read off the shapes of stored tensors and `pretrained_cfg`.

What neither shows is as in timm's own ViT and DINOv2: epsilon 1e-6, exact GELU, and a gate with SiLU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from safetensors import safe_open

from vlmkit.encoders.colours import IMAGENET
from vlmkit.encoders.timm_pixels import stated_pixels
from vlmkit.encoders.vit_load import stored_files
from vlmkit.errors import UsageError, VlmkitError

Shapes = dict[str, tuple[int, ...]]
NORM_EPS = 1e-6
# What timm takes where `pretrained_cfg` says nothing.
UNSTATED = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
STEM = "patch_embed.proj.weight"


def timm_options(weights: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of a folder or hub id as timm writes it.

    Raises:
        UsageError: `heads` is not given: no tensor's shape shows it. Or the activation is another one.
        VlmkitError: It is no plain vision transformer.
    """
    shapes = _shapes(weights)
    table = shapes.get("pos_embed")
    if STEM not in shapes or table is None or "blocks.0.attn.qkv.weight" not in shapes:
        raise VlmkitError(
            f"weights {weights!r} ({stored['architecture']}) are no ViT with stored positions; "
            "the encoder 'timm' takes timm's other models"
        )
    if "heads" not in given:
        raise UsageError(
            f"vit: weights {weights!r} ({stored['architecture']}) do not state heads; give them "
            "(timm's models mostly have one for each 64 of their width)"
        )
    if "act_layer" in stored.get("model_args", {}):
        raise UsageError(f"vit: weights {weights!r} state an act_layer; take the encoder 'timm'")
    found = _architecture(shapes, table)
    cfg = {**UNSTATED, **stored.get("pretrained_cfg", {})}
    stated_side = cfg.get("input_size", [found["patch_size"] * found["position_grid"]])[-1]
    side = int(given.get("image_size", stated_side))
    return {**found, "image_size": side, **stated_pixels(str(stored["architecture"]), cfg, side, given)}


def _shapes(weights: str) -> Shapes:
    shapes: Shapes = {}
    for file in stored_files(weights):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {n: tuple(tensors.get_slice(n).get_shape()) for n in tensors.keys()}  # noqa: SIM118
    return shapes


def _architecture(shapes: Shapes, table: tuple[int, ...]) -> dict[str, Any]:
    width, _, patch, _ = shapes[STEM]
    inner, outer = shapes["blocks.0.mlp.fc1.weight"][0], shapes["blocks.0.mlp.fc2.weight"][1]
    registers = shapes.get("reg_token", (1, 0))[1] + shapes.get("dist_token", (1, 0))[1]
    has_cls = "cls_token" in shapes
    depth = len([name for name in shapes if re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)])
    return {
        "patch_size": patch, "width": width, "depth": depth, "mlp_width": outer,
        "mlp": "gelu" if inner == outer else "swiglu", "norm_eps": NORM_EPS,
        "norm": "layer" if "blocks.0.norm1.bias" in shapes else "rms",
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None, "registers": registers,
        "class_token": has_cls, "pool": "cls" if has_cls else "mean", "projection": False,
        # As many more rows as prefix tokens have a position: none, CLS, or all. A square shows which.
        "position_grid": math.isqrt(table[1]),
    }  # fmt: skip
