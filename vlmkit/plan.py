"""What a recipe would do, on meta tensors: nothing is downloaded, no weight is held, nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from vlmkit.assemble import build_data, training_texts
from vlmkit.config import VLMConfig
from vlmkit.encoders import encoder_class
from vlmkit.encoders.hub import load_pretrained
from vlmkit.encoders.known import KNOWN
from vlmkit.errors import MissingExtraError, VlmkitError
from vlmkit.init_from import adopt, find_saved
from vlmkit.llm import gguf
from vlmkit.llm.known import KNOWN_LLMS
from vlmkit.llm.words import build_words_tokenizer
from vlmkit.plan_memory import Memory, estimate
from vlmkit.recipe import Block, Recipe, Stage
from vlmkit.recipe_files import bundled_recipes
from vlmkit.train.schedule import epoch_length, total_steps
from vlmkit.train.stage import PartRow, apply_stage, finish_stage
from vlmkit.vlm import VLM
from vlmkit.weights import PYPI, resolve_weights

# (width, height) of common pictures: an icon, CLIP's square, VGA, XGA, full HD, a page at 200 dpi.
SIZES = ((64, 64), (336, 336), (640, 480), (1024, 768), (1920, 1080), (1700, 2200))


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: Its name.
        samples: Number of samples; None where the data is not there.
        steps: Optimiser steps; None where they follow from data that is not there.
        parts: What trains.
        memory: Estimate for one device.
    """

    name: str
    samples: int | None
    steps: int | None
    parts: list[PartRow]
    memory: Memory


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Attributes:
        stages: One entry a stage.
        tokens: Image tokens in the sequence by (width, height) of a picture in pixels.
        looked_at: The same for tokens that blocks inside the language model look at; empty without blocks.
        notes: What is not known, in words.
    """

    stages: list[StagePlan]
    tokens: dict[tuple[int, int], int]
    looked_at: dict[tuple[int, int], int]
    notes: list[str]


def make_plan(recipe: Recipe, fetch: bool = False) -> Plan:
    """Count parameters, tokens and steps, and estimate memory.

    Args:
        recipe: What is to be planned.
        fetch: Download the config.json of models whose shapes are not bundled.

    Raises:
        VlmkitError: Shapes are neither bundled nor on this machine, and `fetch` is not set; names the models.
        UsageError: A stage cannot be applied.
    """
    if not fetch:
        _refuse_fetching(recipe)
    notes: list[str] = []
    with torch.device("meta"):
        model = VLM(_config(recipe, notes))
        stages = [_stage(recipe, stage, model, notes) for stage in recipe.stages]
    tokens = {size: model.count_tokens(size) for size in SIZES}
    looked_at = {}
    if model.injection is not None:
        looked_at = {size: model.count_given(size) for size in SIZES}
    return Plan(stages, tokens, looked_at, notes)


def _refuse_fetching(recipe: Recipe) -> None:
    named: list[tuple[Any, Mapping[str, object]]]
    named = [(block.options.get("weights"), KNOWN) for block in recipe.model.encoders]
    named += [(recipe.model.llm.weights, KNOWN_LLMS)]
    remote = [str(w) for w, known in named if w is not None and w not in known and _is_remote(str(w))]
    if remote:
        raise VlmkitError(
            f"the shapes of {', '.join(remote)} are not bundled; plan would fetch config.json from the hub: "
            "allow it with --fetch, or give a folder"
        )


def _is_remote(reference: str) -> bool:
    return not reference.startswith(PYPI) and not Path(reference).expanduser().exists()


def _config(recipe: Recipe, notes: list[str]) -> VLMConfig:
    """The model's configuration: of the one that `init_from` names if it is here, else of the parts."""
    saved = recipe.init_from
    if saved is not None and Path(saved).is_dir():
        config: VLMConfig = VLMConfig.from_pretrained(find_saved(saved))
        adopt(config, saved, recipe.model)
        return config
    if saved is not None and saved not in bundled_recipes():
        notes.append(f"{saved} is not looked at: shapes are those of the parts that the recipe states")
    blocks = recipe.model.encoders
    return VLMConfig(
        encoders=[{"type": b.type, **encoder_class(b.type).resolve(**b.options)} for b in blocks],
        fusion=recipe.model.fusion,
        image_tokens=recipe.model.image_tokens.model_dump(),
        splice=recipe.model.splice.model_dump(),
        connector={"type": recipe.model.connector.type, **recipe.model.connector.options},
        text_config=_text_config(recipe, notes),
        prompt={"format": recipe.model.prompt},
    )


def _text_config(recipe: Recipe, notes: list[str]) -> Any:
    """The language model's configuration with a row for the image placeholder."""
    stated = recipe.model.llm
    if stated.weights is None:
        vocabulary = len(build_words_tokenizer(_texts(recipe, notes)))
        return AutoConfig.for_model(stated.type, vocab_size=vocabulary, **stated.options)
    if stated.weights in KNOWN_LLMS and not Path(stated.weights).is_dir():
        known = KNOWN_LLMS[stated.weights]
        config, tokens = AutoConfig.for_model(known.family, **known.config), known.tokens
    else:
        path = resolve_weights(stated.weights)
        folder = str(gguf.converted(Path(path))) if path.endswith(gguf.SUFFIX) else path
        config, tokens = load_pretrained(AutoConfig, folder), len(load_pretrained(AutoTokenizer, folder))
    config.vocab_size = max(config.vocab_size, tokens + 1)
    return config


def _texts(recipe: Recipe, notes: list[str]) -> Iterable[str]:
    try:
        return list(training_texts(recipe))
    except (VlmkitError, MissingExtraError):
        notes.append("the vocabulary is made from data that is not there: its rows are not counted")
        return []


def _stage(recipe: Recipe, stage: Stage, model: VLM, notes: list[str]) -> StagePlan:
    samples = _count_samples(stage.data, notes)
    steps = stage.steps
    if steps is None and samples is not None:
        steps = total_steps(stage, samples)
    parts = apply_stage(model, stage)
    memory = estimate(recipe, stage, model)
    finish_stage(model)
    return StagePlan(stage.name, samples, steps, parts, memory)


def _count_samples(data: Block, notes: list[str]) -> int | None:
    """Number of samples an epoch; None where they are not on this machine."""
    if data.type == "hf_dataset" and not Path(str(data.options.get("path"))).exists():
        notes.append(f"data set {data.options.get('path')} is not on this machine: steps unknown")
        return None
    try:
        return epoch_length(build_data(data))
    except VlmkitError as error:
        notes.append(f"data not found, steps unknown: {error}")
        return None
