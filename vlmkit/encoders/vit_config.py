"""What a checkpoint states of our ViT's options: runs of vlmkit, ViT, DeiT, DINOv2, DINOv3, timm.

An architecture that timm stores is read off the shapes of its tensors; only the number of heads is in none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmkit.encoders.colours import IMAGENET
from vlmkit.encoders.hub import read_config, read_processor
from vlmkit.encoders.processors import stated_crop, stated_pixels
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.weights import reachable_weights


def stored_file(weights: str, name: str) -> Path | None:
    """A file of a checkpoint, downloaded where it is on the hub; None where the checkpoint has none.

    Raises:
        VlmkitError: The checkpoint cannot be reached.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(reachable_weights(weights), name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(f"weights {weights!r} cannot be read: {reason}") from error
    return Path(found) if found else None


def stored_json(weights: str, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a checkpoint.

    Raises:
        VlmkitError: There is none, or it is not JSON.
    """
    file = stored_file(weights, name)
    if file is None:
        raise VlmkitError(f"weights {weights!r} have no {name}; give a folder or hub id that has one")
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlmkitError(f"weights {weights!r}: {name} is no JSON: {error}") from error
    return stored


def read_options(weights: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that a checkpoint states.

    Args:
        weights: Weights reference.
        given: Options that a recipe states; they need not be read.

    Raises:
        UsageError: An option contradicts the checkpoint, or one of its own is not supported.
        VlmkitError: The checkpoint cannot be read, or is of another kind.
    """
    if "size" in given:
        raise UsageError(f"vit: weights {weights!r} have a shape of their own; leave size out")
    stored = stored_json(weights)
    if "encoders" in stored:
        return _of_run(weights, stored)
    model = stored.get("model_type")
    if model in MODELS:
        return _of_model(weights, model, given)
    if "architecture" in stored:
        from vlmkit.encoders.vit_timm import timm_options

        return timm_options(weights, stored, given)
    raise VlmkitError(
        f"weights {weights!r} are a {model!r} model; the encoder 'vit' takes {', '.join(MODELS)}, timm's "
        "vision transformers and runs of vlmkit"
    )


def _of_run(weights: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(stored["encoders"][0])
    if options.pop("type", None) != "vit":
        raise VlmkitError(f"weights {weights!r}: the run's encoder is {stored['encoders'][0].get('type')!r}")
    return options


def _of_model(weights: str, model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    config = read_config(weights)
    _check(weights, config)
    found = {**_common(config), **MODELS[model](config)}
    stored = read_processor(weights)
    found |= stated_pixels(stored)
    if not {"layout", "image_size"} <= set(given):
        found |= stated_crop(_square(stored)) if stored else {}
        if "image_size" in given:
            # It belongs to the stored size.
            found.pop("shortest_edge", None)
    return found


def _common(config: Any) -> dict[str, Any]:
    return {
        "image_size": config.image_size, "patch_size": config.patch_size, "width": config.hidden_size,
        "depth": config.num_hidden_layers, "heads": config.num_attention_heads,
        "norm_eps": config.layer_norm_eps, "pool": "cls", "projection": False,
        "position_grid": config.image_size // config.patch_size,
    }  # fmt: skip


def _vit(config: Any) -> dict[str, Any]:
    return {"mlp_width": config.intermediate_size, "antialias": False}


def _deit(config: Any) -> dict[str, Any]:
    return {**_vit(config), "registers": 1}


def _dinov2(config: Any) -> dict[str, Any]:
    mlp = "swiglu" if config.use_swiglu_ffn else "gelu"
    scale = {"layer_scale": config.layerscale_value, "antialias": False, **IMAGENET}
    return {"mlp": mlp, "mlp_ratio": float(config.mlp_ratio), **scale}


def _dinov2_with_registers(config: Any) -> dict[str, Any]:
    return {**_dinov2(config), "registers": config.num_register_tokens, "antialias": True}


def _dinov3(config: Any) -> dict[str, Any]:
    mlp = {"mlp": "swiglu" if config.use_gated_mlp else "gelu", "mlp_width": config.intermediate_size}
    turned = {"positions": "rope_2d", "rope_base": config.rope_theta, "position_grid": 0}
    scale = {"layer_scale": config.layerscale_value, "registers": config.num_register_tokens}
    return {**mlp, **turned, **scale, **IMAGENET}


MODELS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "vit": _vit,
    "deit": _deit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2_with_registers,
    "dinov3_vit": _dinov3,
}


def _check(weights: str, config: Any) -> None:
    """Refuse what no option of ours can express."""
    gated = getattr(config, "use_gated_mlp", False)
    needed: dict[str, Any] = dict.fromkeys(
        ("qkv_bias", "query_bias", "value_bias", "proj_bias", "mlp_bias"), True
    )
    needed |= {"num_channels": 3, "hidden_act": "silu" if gated else "gelu"}
    for name, value in needed.items():
        if getattr(config, name, value) != value:
            raise UsageError(
                f"weights {weights!r} have {name}={getattr(config, name)}; the encoder 'vit' has only {value}"
            )
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(config, name), int):
            raise UsageError(f"weights {weights!r} have {name}={getattr(config, name)}; only squares work")


def _square(stored: Mapping[str, Any]) -> dict[str, Any]:
    """An image processor whose size is one number: that of ViT means a square by it, without a crop."""
    size = stored.get("size")
    if isinstance(size, int) and "crop_size" not in stored:
        return {**stored, "size": {"height": size, "width": size}}
    return dict(stored)
