"""What a recipe would do, on meta tensors: nothing is downloaded, no weight is held, nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vlmkit.assemble import build_data
from vlmkit.blueprint import planned_config, refuse_fetching
from vlmkit.errors import VlmkitError
from vlmkit.plan_memory import Memory, estimate
from vlmkit.recipe import Block, Recipe, Stage
from vlmkit.train.schedule import epoch_length, total_steps
from vlmkit.train.stage import PartRow, apply_stage, finish_stage
from vlmkit.vlm import VLM

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
        refuse_fetching(recipe)
    notes: list[str] = []
    with torch.device("meta"):
        model = VLM(planned_config(recipe, notes))
        stages = [_stage(recipe, stage, model, notes) for stage in recipe.stages]
    tokens = {size: model.count_tokens(size) for size in SIZES}
    looked_at = {}
    if model.injection is not None:
        looked_at = {size: model.count_given(size) for size in SIZES}
    return Plan(stages, tokens, looked_at, notes)


def _stage(recipe: Recipe, stage: Stage, model: VLM, notes: list[str]) -> StagePlan:
    samples = _count_samples(stage.data, notes)
    steps = stage.steps
    if steps is None and samples is not None:
        steps = total_steps(stage, samples)
    parts = apply_stage(model, stage)
    memory = estimate(recipe, stage, model)
    finish_stage(model, check=False)
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
