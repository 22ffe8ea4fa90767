"""The complete configuration of a timm encoder: what is given, what timm states, what was proved of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from vlmkit.encoders.spec import hidden_state_index
from vlmkit.encoders.timm_model import build, import_timm, stated_side
from vlmkit.encoders.timm_pixels import CROPS, stated_pixels
from vlmkit.encoders.timm_probe import prove
from vlmkit.encoders.timm_weights import find_source
from vlmkit.encoders.values import check_values, check_whole
from vlmkit.errors import UsageError

# What a complete configuration states.
COMPLETE = {
    "model", "model_args", "image_size", "layer", "pooled", "projection", "layout", "shortest_edge", "mean",
    "std", "resample", "proved",
}  # fmt: skip
VIEWS = ("layout", "shortest_edge")


def complete(given: Mapping[str, Any], weights: str | None) -> dict[str, Any]:
    """All arguments of the constructor but `weights`, from those that are given (None is absent).

    A configuration whose proof is of the same model is returned as it is, without looking at the model.

    Raises:
        UsageError: The model cannot be built, or its outputs contradict what it states.
    """
    config: dict[str, Any] = {"model_args": {}, "pooled": True, "projection": 0}
    config |= {name: value for name, value in given.items() if value is not None}
    check_values("timm", config)
    check_whole("timm", "projection", config["projection"], 0)
    if set(config) >= COMPLETE and config["proved"].get("of") == _subject(config):
        return config
    source = find_source(config.get("model"), weights)
    config["model"] = source.model
    config["model_args"] = {**source.model_args, **_plain(config["model_args"])}
    if "image_size" not in config:
        config["image_size"] = stated_side(source.model, source.cfg)
    data = import_timm().data.resolve_data_config(pretrained_cfg=source.cfg)
    config = _without_old_crop(config, data)
    pixels = stated_pixels(source.model, data, config["image_size"], config)
    config = {"shortest_edge": 0, **pixels, **config}
    config["proved"] = json.loads(_proved(json.dumps(_subject(config))))
    config.setdefault("layer", -2 if config["proved"]["kind"] == "blocks" else -1)
    return config


def _without_old_crop(config: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Without the layout that timm states for the side of an older proof, if the side is another now."""
    side = config.get("proved", {}).get("of", {}).get("image_size", config["image_size"])
    if side == config["image_size"] or data["crop_mode"] not in CROPS:
        return config
    old = stated_pixels(config["model"], data, side, ("resample",))
    if any(config.get(name) != old[name] for name in VIEWS):
        return config  # it was stated by the user
    return {name: value for name, value in config.items() if name not in VIEWS}


def _subject(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a proof is about."""
    return {name: config[name] for name in ("model", "model_args", "image_size", "projection")}


def _plain(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """As they are read back from JSON: tuples become lists."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(model_args)))
    except TypeError as error:
        raise UsageError(f"timm: model_args must be plain values, as in YAML: {error}") from error
    return plain


@lru_cache(maxsize=16)
def _proved(subject: str) -> str:
    """The proof of a subject, both as JSON. On the CPU, from a seed of its own, in full precision."""
    of = json.loads(subject)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = build(of["model"], of["model_args"], of["image_size"], of["projection"])
        proof = prove(of["model"], tower, of["image_size"], of["projection"])
    return json.dumps({"of": of, **proof})


def level_index(model: str, layer: int, proof: Mapping[str, Any]) -> int:
    """Index of a block's output (0: embeddings) or of a feature level.

    Raises:
        UsageError: There is none, or it is not proved to be a grid.
    """
    depth: int = proof["depth"]
    if proof["kind"] == "blocks":
        return hidden_state_index(f"timm's {model}", layer, depth)
    if not -depth <= layer < depth:
        raise UsageError(f"timm's {model}: no layer {layer}; it has {depth} levels: {-depth} to {depth - 1}")
    level = proof["levels"][layer]
    if isinstance(level, str):
        good = [i for i, other in enumerate(proof["levels"]) if not isinstance(other, str)]
        raise UsageError(
            f"timm's {model}: layer {layer} is not proved to be a grid: {level}; possible: {good}"
        )
    return layer % depth


def embed_dim(model: str, proof: Mapping[str, Any]) -> int:
    """Width of the pooled vector."""
    if isinstance(proof["embed_dim"], str):
        raise UsageError(
            f"timm's {model} gives no retrieval vector ({proof['embed_dim']}); state pooled: false"
        )
    return int(proof["embed_dim"])
