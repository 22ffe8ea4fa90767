"""Building models of timm (Wightman, https://github.com/huggingface/pytorch-image-models) by name.

timm is an extra and is imported only here, and only when a model is built.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlmkit.errors import MissingExtraError, UsageError, VlmkitError

# The first release that runs no code out of a checkpoint; its modules recompute the tables that none stores.
OLDEST = (1, 0, 26)
# Arguments of `timm.create_model` that follow from options of the encoder.
OURS = {
    "img_size": "image_size", "num_classes": "projection", "in_chans": "images of three channels",
    "pretrained": "weights", "checkpoint_path": "weights", "pretrained_cfg": "weights",
    "pretrained_cfg_overlay": "weights", "features_only": "layer", "out_indices": "layer",
}  # fmt: skip


def import_timm() -> Any:
    """The package timm.

    Raises:
        MissingExtraError: It is not installed.
        VlmkitError: It is too old, or the torchvision that it imports is missing or made for another torch.
    """
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError("timm", "timm")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(
            f"timm imports torchvision, which fails here ({reason}); timm needs the torchvision that "
            f"belongs to the installed torch {torch.__version__}: install that one, then do: "
            "pip install 'vlmkit[timm]'"
        ) from error
    timm = importlib.import_module("timm")
    if tuple(int(n) for n in timm.__version__.split(".")[:3] if n.isdigit()) < OLDEST:
        raise VlmkitError(f"timm {timm.__version__} is too old; do: pip install -U 'vlmkit[timm]'")
    return timm


def statement(model: str) -> dict[str, Any]:
    """What timm states about a model by name, its `pretrained_cfg`: input size, normalisation, crop, classes.

    Args:
        model: `architecture.tag`, or the architecture alone where its tags state the same pixels.

    Raises:
        UsageError: There is no such model or tag; several tags state different pixels.
    """
    timm = import_timm()
    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or ["see timm.list_models()"]
        raise UsageError(f"timm {timm.__version__} has no model {name!r} (near: {', '.join(near)})")
    stated = {k: v.to_dict() for k, v in timm.models.get_arch_pretrained_cfgs(name).items()}
    names = [each.partition(".")[2] for each in stated]
    if tag and tag not in names:
        known = ", ".join(n for n in names if n) or "none"
        raise UsageError(f"timm {timm.__version__} has no tag {tag!r} of {name} (known: {known})")
    if not tag and len({pixel_facts(cfg) for cfg in stated.values()}) > 1:
        raise UsageError(
            f"timm's {name} was published in {len(stated)} versions whose preprocessing differs; "
            f"name one of {', '.join(stated)}"
        )
    cfg: dict[str, Any] = timm.get_pretrained_cfg(model).to_dict()
    return cfg


def pixel_facts(cfg: Mapping[str, Any]) -> str:
    """What of a `pretrained_cfg` decides the pixels, to compare."""
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    return repr([cfg.get(key) for key in keys])


def stated_side(model: str, cfg: Mapping[str, Any]) -> int:
    """Side in pixels of the square that a model was made for.

    Raises:
        UsageError: It takes no square pictures of three channels.
    """
    channels, height, width = cfg["input_size"]
    if channels != 3 or height != width:
        raise UsageError(
            f"timm's {model} takes pictures of {channels} channels and {height} x {width} pixels; "
            "only three channels and squares are supported: state image_size for a square"
        )
    return int(width)


def build(
    model: str,
    model_args: Mapping[str, Any],
    image_size: int,
    classes: int,
    pretrained: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model for views of `image_size` pixels, in evaluation mode.

    Args:
        model: Name in timm.
        model_args: More arguments of `timm.create_model`.
        image_size: Side of a view in pixels.
        classes: Outputs of the final layer; 0 for none.
        pretrained: Changes of timm's `pretrained_cfg` that name the weights; absent: random weights.

    Raises:
        UsageError: timm has no such model, or it does not take the arguments or weights.
    """
    for name in model_args:
        if name in OURS:
            raise UsageError(f"timm: model_args has {name!r}, which is stated by: {OURS[name]}")
    timm = import_timm()
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in model_args.items()}
    # Models with a position table say so, and take its size; the others see any size.
    if timm.get_pretrained_cfg(model).fixed_input_size:
        arguments["img_size"] = image_size
    loaded = {"pretrained": True, "pretrained_cfg_overlay": dict(pretrained)} if pretrained else {}
    try:
        tower: nn.Module = timm.create_model(model, num_classes=classes, **arguments, **loaded)
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UsageError(f"timm cannot build {model} with {arguments}: {reason}") from error
    return tower.eval()
