"""A checkpoint becomes a whole model: adapters go into full-precision weights, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from vlmkit import VLM, checkpoint
from vlmkit.assemble import assemble
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit.inference import model_inputs
from vlmkit.messages import Query
from vlmkit.quantize import dequantize
from vlmkit.recipe import Recipe
from vlmkit.train import checkpoints
from vlmkit.train.adapters import has_adapters
from vlmkit.train.distribute import process_state
from vlmkit.train.intact import stage_and_step
from vlmkit.train.lock import locked
from vlmkit.train.logits import evaluate_exactly, require_same_logits
from vlmkit.train.merge_rows import merge_rows
from vlmkit.train.metrics import Silent
from vlmkit.train.module import StageModule
from vlmkit.train.reach import freeze_unreached
from vlmkit.train.restore import last_checkpoint
from vlmkit.train.stage import apply_stage, finish_stage

# Beside the model: where it is from.
MERGED = "merged.json"
# Logits of a row's last tokens are compared: all of them, of a large vocabulary, are gigabytes.
LAST = 64


@dataclass(frozen=True)
class Merged:
    """What `merge_run` has written.

    Attributes:
        path: The model's folder.
        checkpoint: Name of the checkpoint.
        adapters: Whether there were any.
        difference: Largest difference of logits, before and after.
        rows: What they were compared on, in words.
    """

    path: Path
    checkpoint: str
    adapters: bool
    difference: float
    rows: str


def merge_run(run: Path, output: Path, name: str | None = None, four_bits: bool = False) -> Merged:
    """Write the whole model of a run's checkpoint, for `VLM.from_pretrained`.

    The logits are compared between the trained model with its adapters and the model that is read back from
    what was written, on a few rows; the folder appears under its name only if they agree.

    Args:
        run: A run, finished or not.
        output: A folder that is not there, or empty.
        name: `STAGE-step-N`; the newest checkpoint of the last stage that has any, where absent.
        four_bits: Let a language model in 4 bits become the float32 numbers that these stand for.

    Raises:
        UsageError: No such checkpoint, the folder holds something, the language model is in 4 bits, or the
            run is training.
        VlmkitError: A part is not there, a tensor does not fit, or logits differ by more than 1e-3.
    """
    manifest = checkpoint.read_run(run)
    # A run that trains deletes its older checkpoints. A finished one may be where nobody can write.
    with nullcontext() if manifest["finished"] else locked(run, Silent()):
        return _merge(run, Recipe.model_validate(manifest["recipe"]), output, name, four_bits)


def _merge(run: Path, recipe: Recipe, output: Path, name: str | None, four_bits: bool) -> Merged:
    chosen = _chosen(run, recipe, name)
    quantized = recipe.model.llm.quantize is not None
    _refuse(run, output, quantized and not four_bits)
    model = _trained(run, recipe, chosen)
    adapters = has_adapters(model.language_model)
    queries, rows = merge_rows(recipe, stage_and_step(chosen.name)[0], model.processor)
    before = _logits(model, queries)
    # On a GPU the 4-bit layers compute in bfloat16.
    coarse = quantized and model.device.type != "cpu"
    finish_stage(model)
    if quantized:
        dequantize(model)
    with checkpoint.building(output) as partial:
        model.save_pretrained(partial)
        # Two models at once may be too much; and what was written is what has to be right.
        del model
        after = _read_back(partial, output, queries)
        difference = max(require_same_logits(*pair, coarse) for pair in zip(before, after, strict=True))
        source = {"kind": "vlmkit merge", "run": str(run.resolve()), "checkpoint": chosen.name}
        checkpoint.write_json(partial / MERGED, {**source, "logits": difference, "compared_on": rows})
    return Merged(output, chosen.name, adapters, difference, rows)


def _refuse(run: Path, output: Path, four_bits: bool) -> None:
    """What can be refused before anything is loaded."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is there and not empty; give another --output")
    if four_bits:
        raise UsageError(
            f"{run} trains over a language model in 4 bits, and merging into 4 bits would round away what "
            "was learnt; --dequantize merges into the float32 numbers that the 4 bits stand for, as the end "
            "of the run does"
        )


def _chosen(run: Path, recipe: Recipe, name: str | None) -> Path:
    """The checkpoint of that name, or the newest one."""
    there = [path for stage in recipe.stages for path in checkpoints.of_stage(run, stage.name)]
    if not there:
        raise UsageError(f"{run} has no checkpoint; go on with: vlmkit train {run}/recipe.yaml --resume")
    if name is None:
        return there[-1]
    for path in there:
        if path.name == name:
            return path
    raise unknown_name("checkpoint", name, [path.name for path in there])


def _trained(run: Path, recipe: Recipe, chosen: Path) -> VLM:
    """The model of a run as it was at a checkpoint, adapters on top."""
    # On a CPU everything is computed in float32; 4-bit layers are where they were trained.
    device = process_state().device if recipe.model.llm.quantize else torch.device("cpu")
    model: VLM = assemble(recipe).to(device)
    wanted = stage_and_step(chosen.name)[0]
    for number, stage in enumerate(recipe.stages):
        torch.manual_seed(recipe.seed + number)
        rows = apply_stage(model, stage)
        module = StageModule(model, stage).to(device)
        freeze_unreached(module, rows)
        if stage.name == wanted:
            checkpoints.load_tensors(chosen, module)
            break
        checkpoints.load_tensors(last_checkpoint(run, stage.name), module)
        finish_stage(model)
    return model


def _read_back(partial: Path, output: Path, queries: Iterable[Query]) -> list[Tensor]:
    """Logits of the model that was written; an error here is not one of writing."""
    try:
        return _logits(VLM.from_pretrained(partial), queries)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise VlmkitError(
            f"what was written for {output} cannot be read back ({' '.join(str(error).split())}); nothing is "
            "left of it, the run is as it was"
        ) from error


@torch.no_grad()
def _logits(model: VLM, queries: Iterable[Query]) -> list[Tensor]:
    """Of the last tokens of each row, one row at a time."""
    evaluate_exactly(model)
    return [model(**model_inputs(model, [q])).logits[0, -LAST:].float().cpu() for q in queries]
