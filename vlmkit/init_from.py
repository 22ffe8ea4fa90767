"""`init_from`: a saved model to go on with, as a recipe states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlmkit.checkpoint import require_model
from vlmkit.config import VLMConfig, skeleton
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.quantize import quantization_config
from vlmkit.recipe import Block, Model, load_recipe
from vlmkit.recipe_files import bundled_recipes
from vlmkit.splice import Marks, streams
from vlmkit.vlm import VLM
from vlmkit.weights import reachable_weights

# What may differ from the saved model: how an image becomes views, unless that decides about tensors.
CHANGEABLE = ("layout", "max_num_patches")


def load_saved(reference: str, stated: Model) -> VLM:
    """A saved model; the layout of its images is the one that the recipe states.

    Raises:
        UsageError: The recipe states another encoder, connector, splice, language model or prompt.
        VlmkitError: It cannot be read, or the run of a bundled recipe is not there.
    """
    path = find_saved(reference)
    try:
        config = VLMConfig.from_pretrained(path)
        adopt(config, reference, stated)
        four_bits = quantization_config(stated.llm.quantize) if stated.llm.quantize else None
        model = VLM.from_pretrained(path, config=config, quantization_config=four_bits, dtype=torch.float32)
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(f"init_from {reference!r} cannot be loaded: {reason}") from error
    if four_bits is not None:
        # peft asks the module that it wraps, and transformers marks the outermost one only.
        model.language_model.is_loaded_in_4bit = True
    return model


def find_saved(reference: str) -> str:
    """What `from_pretrained` takes: a folder, the run of a bundled recipe of that name, or a hub id.

    Raises:
        UsageError: The run has not finished.
        VlmkitError: The bundled recipe has not been run.
    """
    if Path(reference).is_dir() or reference not in bundled_recipes():
        path = reachable_weights(reference, "init_from")
    else:
        path = str(load_recipe(reference).run_dir)
        if not Path(path).is_dir():
            raise VlmkitError(
                f"init_from {reference!r}: its run {path} is not there; do: vlmkit train {reference}, "
                "or set init_from=RUN"
            )
    if Path(path).is_dir() and (Path(path) / "vlmkit.json").is_file():
        require_model(path)
    return path


def adopt(config: VLMConfig, reference: str, stated: Model) -> None:
    """Compare a saved configuration with what a recipe states, and take over what may change.

    Raises:
        UsageError: They are different models.
        VlmkitError: The configuration describes none.
    """
    if config.text_config is None:
        raise VlmkitError(f"init_from {reference!r} holds no vlmkit model; give the directory of a run")
    family = stated.llm.type or config.text_config.model_type
    for name, found, wanted in (
        ("encoders", [e["type"] for e in config.encoders], [block.type for block in stated.encoders]),
        ("fusion", config.fusion, stated.fusion),
        ("connector", config.connector, {"type": stated.connector.type, **stated.connector.options}),
        ("splice", asdict(Marks(**config.splice)), stated.splice.model_dump()),
        ("language model", config.text_config.model_type, family),
        ("prompt", config.prompt["format"], stated.prompt),
    ):
        if found != wanted:
            raise UsageError(f"init_from {reference!r} has the {name} {found}, the recipe states {wanted}")
    for option, wanted in stated.llm.options.items():
        found = getattr(config.text_config, option, wanted)
        if not _agrees(found, wanted):
            raise UsageError(
                f"init_from {reference!r}: {option} of the language model is {found}, "
                f"the recipe states {wanted}"
            )
    before = _tensors(config)
    for saved, block in zip(config.encoders, stated.encoders, strict=True):
        _adopt_encoder(saved, reference, block)
    if "image_tokens" in stated.model_fields_set:
        config.image_tokens = stated.image_tokens.model_dump()
    if _tensors(config) != before:
        raise UsageError(
            f"init_from {reference!r}: its layout and the recipe's need other tensors (a newline token, or "
            "the width of several scales); keep the saved layout, or train the connector anew"
        )


def _tensors(config: VLMConfig) -> tuple[list[int], bool]:
    """What layouts decide about tensors: widths of features, and whether there is a newline."""
    specs, connector = skeleton(config)
    return [s.feature_width for s in specs], any(s.rule.newline for s, _ in streams(specs, connector))


def _adopt_encoder(saved: dict[str, Any], reference: str, stated: Block) -> None:
    for name, wanted in stated.options.items():
        if name in CHANGEABLE and name in saved:
            saved[name] = wanted
        elif name in saved and not _agrees(saved[name], wanted):
            raise UsageError(
                f"init_from {reference!r} has the encoder {name} {saved[name]}, the recipe states {wanted}; "
                f"only {' and '.join(CHANGEABLE)} may change"
            )


def _agrees(saved: Any, wanted: Any) -> bool:
    """A saved value is complete; a recipe states some of it."""
    if isinstance(wanted, Mapping) and isinstance(saved, Mapping):
        return all(_agrees(saved.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return list(saved) == list(wanted)
    return bool(saved == wanted)
