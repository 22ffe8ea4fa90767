"""A recipe from start to end: assemble, each stage, save, evaluate; resumable at any point."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

import vlmkit
from vlmkit import checkpoint
from vlmkit.assemble import assemble, build_data, check_fit
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.prompts import PROMPTS
from vlmkit.errors import UsageError
from vlmkit.evaluate import evaluate
from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.quantize import dequantize
from vlmkit.recipe import Recipe, Stage
from vlmkit.train.loop import StageData, StageRun, run_stage
from vlmkit.train.metrics import MetricsFile, Reporter, Silent, plot_metrics
from vlmkit.train.module import StageModule
from vlmkit.train.precision import mixed_precision
from vlmkit.train.stage import apply_stage, finish_stage
from vlmkit.vlm import VLM


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        path: Its directory, for `VLM.from_pretrained`.
        report: What the evaluation found; None without one.
    """

    path: Path
    report: dict[str, Any] | None


def train(recipe: Recipe, resume: bool = False, reporter: Reporter | None = None) -> TrainedRun:
    """Run a recipe.

    Args:
        recipe: What to do.
        resume: Go on with what the run directory holds; start where it holds nothing.
        reporter: Told of the progress.

    Raises:
        UsageError: The run directory holds another run, or one and `resume` is not set.
        Interrupted: A signal came; a checkpoint was written.
    """
    reporter = reporter or Silent()
    run_dir = recipe.run_dir
    manifest = _look_for_run(recipe, resume)
    if manifest is not None and manifest["finished"]:
        return TrainedRun(run_dir, manifest["report"])
    mixed, reason = mixed_precision(recipe.precision, PartialState().device)
    # The state outlives a run, and would refuse a second one in the same process in another precision.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=mixed)
    model = assemble(recipe).to(accelerator.device)
    check_fit(recipe, model)
    # No process may look for a run after another has begun it.
    accelerator.wait_for_everyone()
    manifest = manifest or _begin_run(recipe, accelerator.is_main_process)
    metrics = MetricsFile(run_dir / "metrics.jsonl", accelerator.is_main_process)
    for number, stage in enumerate(recipe.stages):
        # Before the stage is applied: fresh adapters must not depend on what ran before in this process.
        torch.manual_seed(recipe.seed + number)
        rows = apply_stage(model, stage)
        module = StageModule(model, stage).to(accelerator.device)
        found = checkpoint.latest_checkpoint(run_dir, stage.name)
        if stage.name in manifest["stages_done"]:
            assert found is not None
            checkpoint.load_tensors(found, module)
        else:
            reporter.stage(stage.name, rows, reason)
            run = StageRun(run_dir, accelerator, metrics, reporter, stage.clip, stage.workers)
            run_stage(module, stage, _stage_data(recipe, stage, model), run, found)
            manifest["stages_done"].append(stage.name)
            if accelerator.is_main_process:
                checkpoint.write_json(run_dir / checkpoint.MANIFEST, manifest)
        finish_stage(model)
    return _finish(recipe, model, manifest, accelerator, reporter)


def _look_for_run(recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """The manifest of the run that is to be resumed, None for a new run; refuses to write over another."""
    run_dir = recipe.run_dir
    if not (run_dir / checkpoint.MANIFEST).exists():
        if run_dir.exists() and any(run_dir.iterdir()):
            raise UsageError(f"{run_dir} exists, is not empty and holds no run; set output=ANOTHER_DIRECTORY")
        return None
    if not resume:
        raise UsageError(f"{run_dir} holds a run already; add --resume, or set output=ANOTHER_DIRECTORY")
    manifest = checkpoint.read_run(run_dir)
    resolved = recipe.model_dump(mode="json")
    # A run that was moved, or is named by another path, is still the same run.
    changed = sorted(k for k in resolved if k != "output" and resolved[k] != manifest["recipe"].get(k))
    if changed:
        raise UsageError(
            f"{run_dir} was made by another recipe (differs in: {', '.join(changed)}); "
            "resume with the same recipe, or set output=ANOTHER_DIRECTORY"
        )
    return manifest


def _begin_run(recipe: Recipe, write: bool) -> dict[str, Any]:
    """Make the run directory with the resolved recipe, once the model could be assembled."""
    run_dir = recipe.run_dir
    resolved = recipe.model_dump(mode="json")
    manifest = {
        "kind": "vlmkit run",
        "version": vlmkit.__version__,
        "recipe": resolved,
        "stages_done": [],
        "finished": False,
        "report": None,
    }
    if write:
        run_dir.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(run_dir / checkpoint.MANIFEST, manifest)
        (run_dir / "recipe.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    return manifest


def _stage_data(recipe: Recipe, stage: Stage, model: VLM) -> StageData:
    """Samples and collator of a stage.

    Raises:
        UsageError: There is no sample, or none with what the objective needs.
    """
    samples = build_data(stage.data)
    needs = [OBJECTIVES[name] for name in objective_weights(stage.objective)]
    if not len(samples):
        raise UsageError(f"stage {stage.name!r}: its data has no sample")
    if any(objective.captions for objective in needs) and not any(s.captions and s.images for s in samples):
        raise UsageError(
            f"stage {stage.name!r} is contrastive and none of its samples has an image and a caption"
        )
    processor = model.processor
    text = TextRules(
        tokenizer=processor.tokenizer,
        prompt=PROMPTS[stage.prompt or recipe.model.prompt],
        count_tokens=processor.count_tokens,
        image_token_id=processor.image_token_id,
        eos_weight=stage.eos_weight,
        pack=stage.pack,
        max_length=stage.max_length,
    )
    wants_text = any(objective.tokens for objective in needs)
    collate = Collator(processor.spec, text if wants_text else None, stage.hflip, recipe.seed)
    return StageData(samples, collate, recipe.seed)


def _finish(
    recipe: Recipe, model: VLM, manifest: dict[str, Any], accelerator: Accelerator, reporter: Reporter
) -> TrainedRun:
    """Save the whole model at the run's root, draw the curves, evaluate, and mark the run finished."""
    run_dir = recipe.run_dir
    if recipe.model.llm.quantize is not None:
        dequantize(model)
    if accelerator.is_main_process:
        save_model(model, run_dir)
        plot_metrics(run_dir / "metrics.jsonl", run_dir / "curves.png")
    report = None
    if recipe.evaluate is not None and accelerator.is_main_process:
        samples = build_data(recipe.evaluate.data)
        report = evaluate(model.to(accelerator.device), samples, recipe.evaluate, reporter.working)
        checkpoint.write_json(run_dir / "report.json", report)
    if accelerator.is_main_process:
        checkpoint.write_json(run_dir / checkpoint.MANIFEST, {**manifest, "finished": True, "report": report})
    accelerator.wait_for_everyone()
    return TrainedRun(run_dir, report)


def save_model(model: VLM, run_dir: Path) -> None:
    """Write the model's files beside the run's others, each by renaming a finished file into place."""
    partial = run_dir / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for file in sorted(partial.iterdir()):
        file.replace(run_dir / file.name)
    partial.rmdir()
