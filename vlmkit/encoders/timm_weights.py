"""Checkpoints of timm models: which model they are, and every tensor in its place."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from vlmkit.encoders.timm_model import OURS, build, import_timm, statement
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.weights import reachable_weights

HUB = "timm/"
# Names that timm and open_clip give to the file.
FILES = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a model's description comes from.

    Attributes:
        model: Architecture and tag.
        model_args: Arguments of the architecture that differ from timm's.
        cfg: What is stated about it: input size, normalisation, crop, classes.
    """

    model: str
    model_args: dict[str, Any]
    cfg: dict[str, Any]


def find_source(model: str | None, weights: str | None) -> Source:
    """What `model` and `weights` say together, without reading a tensor.

    Raises:
        UsageError: Neither names a model, or they name different ones.
        VlmkitError: The checkpoint cannot be read.
    """
    stored = None if weights is None else _stored(model, weights)
    if model is None and stored is None:
        raise UsageError(
            f"timm: found no model and weights {weights!r}; state model, such as "
            "vit_small_patch16_224.augreg_in21k, or weights that state it, such as "
            "timm/vit_small_patch16_224.augreg_in21k"
        )
    if stored is None:
        assert model is not None
        return Source(model, {}, statement(model))
    if model is not None and model not in (stored.model, stored.model.partition(".")[0]):
        raise UsageError(
            f"timm: weights {weights!r} are of {stored.model}, model is {model!r}; state one of them"
        )
    return stored


def _stored(model: str | None, weights: str) -> Source | None:
    """What timm's table or a config.json states about a checkpoint; None for one without."""
    path = Path(weights).expanduser()
    if path.is_file():
        return None
    if not path.is_dir():
        name = weights.removeprefix(HUB)
        if weights.startswith(HUB) and import_timm().is_model(name.partition(".")[0]):
            return Source(name, {}, statement(name))
        # Some of timm's checkpoints lie in repositories of other owners.
        if model is not None and statement(model).get("hf_hub_id") == weights:
            return Source(model, {}, statement(model))
    file = _find(weights, ["config.json"])
    return None if file is None else _read(weights, json.loads(file.read_text(encoding="utf-8")))


def _read(weights: str, config: Mapping[str, Any]) -> Source:
    """A config.json of timm: `architecture`, `model_args`, `pretrained_cfg`, `num_classes`, `global_pool`."""
    if "architecture" not in config or "pretrained_cfg" not in config:
        found = config.get("model_type", "no architecture")
        raise VlmkitError(
            f"weights {weights!r}: config.json states {found!r}; needed is one of timm, with architecture "
            "and pretrained_cfg; or give the weights file itself and state model"
        )
    cfg = dict(config["pretrained_cfg"])
    cfg["num_classes"] = config.get("num_classes", cfg.get("num_classes", 0))
    name = str(config["architecture"])
    full = f"{name}.{cfg.get('tag')}"
    # Newer releases store what they were called with; ours follow from the statement.
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k not in OURS}
    if config.get("global_pool") is not None:
        arguments["global_pool"] = config["global_pool"]
    known = import_timm().models.get_arch_pretrained_cfgs(name)
    return Source(full if full in known else name, arguments, cfg)


def _find(weights: str, names: Sequence[str]) -> Path | None:
    """The first of some files that a folder or hub repository has.

    Raises:
        VlmkitError: It cannot be reached.
    """
    from transformers.utils import cached_file

    path = reachable_weights(weights)
    try:
        for name in names:
            found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
            if found is not None:
                return Path(found)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(f"weights {weights!r} cannot be read: {reason}") from error
    return None


def read_tensors(
    model: str, model_args: Mapping[str, Any], image_size: int, weights: str
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the names of timm's model, converted and resized as timm does it.

    The checkpoint is that of the whole model with its classifier, or of the model without: each tensor of it
    and of the model must find its counterpart.

    Raises:
        VlmkitError: There is no file, or tensors are missing, left over or of another shape.
    """
    path = Path(weights).expanduser()
    file = path if path.is_file() else _find(weights, FILES)
    if file is None:
        raise VlmkitError(f"weights {weights!r} have none of the files {', '.join(FILES)}")
    source = find_source(model, weights)
    reasons: list[str] = []
    for classes in dict.fromkeys((int(source.cfg.get("num_classes", 0)), 0)):
        overlay = {"file": str(file), "custom_load": False, "num_classes": classes}
        try:
            whole = build(model, model_args, image_size, classes, overlay)
        except UsageError as error:
            reasons.append(f"with {classes} classes: {error}")
        except (OSError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
            raise VlmkitError(f"weights {weights!r} cannot be read: {str(error).splitlines()[0]}") from error
        else:
            return dict(whole.state_dict())
    raise VlmkitError(f"weights {weights!r} do not belong to timm's {model}: {'; '.join(reasons)}")
