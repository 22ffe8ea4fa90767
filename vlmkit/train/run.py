"""A recipe from start to end: assemble, each stage, save, evaluate; resumable at any point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import vlmkit
from vlmkit import checkpoint
from vlmkit.assemble import assemble, build_data, check_fit, text_rules
from vlmkit.data.collate import Collator
from vlmkit.data.sample import Sample, readable
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.evaluate import evaluate
from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.quantize import dequantize
from vlmkit.recipe import Recipe, Stage
from vlmkit.share import SHARE_LIMIT
from vlmkit.share.shared import Shared, StageWork
from vlmkit.train import checkpoints
from vlmkit.train.curves import plot_metrics
from vlmkit.train.distribute import home_device, make_accelerator, own_randomness, process_state
from vlmkit.train.loop import StageRun, run_stage
from vlmkit.train.metrics import MetricsFile, Reporter, Silent, require_plots
from vlmkit.train.module import StageModule
from vlmkit.train.precision import mixed_precision
from vlmkit.train.reach import freeze_unreached
from vlmkit.train.stage import apply_stage, finish_stage
from vlmkit.train.steps import StageData
from vlmkit.train.trackers import Tracked, require_trackers
from vlmkit.vlm import VLM


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        path: Its directory, for `VLM.from_pretrained`.
        report: What the evaluation found; None without one, and in all processes but the main one.
    """

    path: Path
    report: dict[str, Any] | None


def train_recipe(
    recipe: Recipe,
    resume: bool = False,
    reporter: Reporter | None = None,
    share: Path | None = None,
    share_limit: float = SHARE_LIMIT,
) -> TrainedRun:
    """Run a recipe.

    Args:
        recipe: What to do.
        resume: Go on with what the run directory holds; start where it holds nothing.
        reporter: Told of the progress.
        share: A directory of work that runs have in common; see `vlmkit.share`.
        share_limit: Most gigabytes of the stored features of one encoder there.

    Raises:
        UsageError: The run directory holds another run, or one and `resume` is not set; a tracker is not
            installed.
        Interrupted: A signal came; a checkpoint was written.
    """
    require_trackers(recipe.trackers)
    state = process_state()
    # One voice, that of the process which writes.
    reporter = reporter if reporter is not None and state.is_main_process else Silent()
    if not recipe.trackers or not state.is_main_process:
        return _train(recipe, resume, reporter, share, share_limit)
    with Tracked(recipe, reporter) as tracked:
        run = _train(recipe, resume, tracked, share, share_limit)
        tracked.report(run.report)
    return run


def _train(
    recipe: Recipe, resume: bool, reporter: Reporter, share: Path | None, share_limit: float
) -> TrainedRun:
    """`train_recipe`, once somebody listens."""
    state, run_dir = process_state(), recipe.run_dir
    manifest = _look_for_run(recipe, resume)
    if manifest is not None and manifest["finished"]:
        return _evaluated(recipe, None, manifest, reporter)
    mixed, reason = mixed_precision(recipe.precision, state.device)
    accelerator = make_accelerator(mixed)
    shared = Shared(share, share_limit, accelerator, reporter.note) if share is not None else None
    device = home_device(accelerator)
    model = assemble(recipe).to(device)
    check_fit(recipe, model)
    # Everything that can be missing is looked for before the first step, not after hours of them.
    data = [_stage_data(recipe, stage, model, shared) for stage in recipe.stages]
    _test_samples(recipe)
    require_plots()
    # No process may look for a run after another has begun it.
    accelerator.wait_for_everyone()
    manifest = manifest or _begin_run(recipe, accelerator.is_main_process)
    metrics = MetricsFile(run_dir / "metrics.jsonl", accelerator.is_main_process)
    for number, stage in enumerate(recipe.stages):
        # Before the stage is applied: fresh adapters must not depend on what ran before in this process.
        torch.manual_seed(recipe.seed + number)
        rows = apply_stage(model, stage)
        done = stage.name in manifest["stages_done"]
        encode = shared.features(model, stage, data[number]) if shared is not None and not done else None
        module = StageModule(model, stage, encode).to(device)
        rows = freeze_unreached(module, rows)
        own_randomness(recipe.seed + number, accelerator)
        found = checkpoints.latest_checkpoint(run_dir, stage.name)
        if done:
            checkpoints.load_tensors(_there(found, run_dir, stage), module)
        else:
            reporter.stage(stage.name, rows, reason)
            run = StageRun(run_dir, accelerator, metrics, reporter, stage.clip, stage.workers)
            train = partial(run_stage, module, stage, data[number], run, found)
            if shared is None:
                train()
            else:
                shared.train(StageWork(recipe, number, module, data[number], run), train)
            accelerator.free_memory()
            manifest["stages_done"].append(stage.name)
            if accelerator.is_main_process:
                checkpoint.write_json(run_dir / checkpoint.MANIFEST, manifest)
        finish_stage(model)
    if recipe.model.llm.quantize is not None:
        dequantize(model)
    if accelerator.is_main_process:
        _save_run(model, run_dir, manifest)
    accelerator.wait_for_everyone()
    return _evaluated(recipe, model, manifest, reporter)


def _there(found: Path | None, run_dir: Path, stage: Stage) -> Path:
    """The checkpoint of a stage that the manifest says is done."""
    if found is None:
        raise VlmkitError(
            f"{run_dir}: the checkpoint of stage {stage.name!r} is gone; train again, with another output="
        )
    return found


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
    # Read as a recipe, what an older version wrote has the defaults of keys that it did not know.
    written = Recipe.model_validate(manifest["recipe"]).model_dump(mode="json")
    # A run that was moved, is tested on other data or told to others is still the same run.
    free = ("output", "evaluate", "trackers")
    changed = sorted(k for k in resolved if k not in free and resolved[k] != written[k])
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


def _stage_data(recipe: Recipe, stage: Stage, model: VLM, shared: Shared | None = None) -> StageData:
    """Samples and collator of a stage.

    Raises:
        UsageError: There is no sample, or none with what the objective needs.
    """
    skips = stage.on_bad_sample == "skip"
    samples = build_data(stage.data, check=not skips)
    needs = [OBJECTIVES[name] for name in objective_weights(stage.objective)]
    if not len(samples):
        raise UsageError(f"stage {stage.name!r}: its data has no sample")
    seen = (s for s in readable(samples) if s) if skips else samples
    if any(objective.captions for objective in needs) and not any(s.captions and s.images for s in seen):
        raise UsageError(
            f"stage {stage.name!r} is contrastive and none of its samples has an image and a caption"
        )
    processor, prompt = model.processor, stage.prompt or recipe.model.prompt
    text = text_rules(stage, prompt, processor)
    wants_text = any(objective.tokens for objective in needs)
    if shared is not None and wants_text:
        text = replace(text, known=shared.rows(text, prompt))
    rules = text if wants_text else None
    collate = Collator(processor.specs, rules, stage.hflip, recipe.seed, processor.fit)
    return StageData(samples, collate, recipe.seed)


def _test_samples(recipe: Recipe) -> Sequence[Sample]:
    """The samples of the evaluation; none without one."""
    return build_data(recipe.evaluate.data) if recipe.evaluate is not None else ()


def _save_run(model: VLM, run_dir: Path, manifest: dict[str, Any]) -> None:
    """Save the whole model at the run's root, draw the curves, and mark the run finished."""
    save_model(model, run_dir)
    plot_metrics(run_dir / "metrics.jsonl", run_dir / "curves.png")
    manifest["finished"] = True
    checkpoint.write_json(run_dir / checkpoint.MANIFEST, manifest)


def _evaluated(recipe: Recipe, model: VLM | None, manifest: dict[str, Any], reporter: Reporter) -> TrainedRun:
    """A finished run with its report, which is made where the manifest holds none of this evaluation."""
    run_dir, state = recipe.run_dir, process_state()
    wanted = recipe.model_dump(mode="json")["evaluate"]
    stale = manifest["report"] is None or manifest["recipe"]["evaluate"] != wanted
    if recipe.evaluate is not None and stale and state.is_main_process:
        model = (model or VLM.from_pretrained(run_dir)).to(state.device)
        manifest["report"] = evaluate(model, _test_samples(recipe), recipe.evaluate, reporter.working)
        manifest["recipe"]["evaluate"] = wanted
        checkpoint.write_json(run_dir / "report.json", manifest["report"])
        checkpoint.write_json(run_dir / checkpoint.MANIFEST, manifest)
    # Others do not wait for it: an evaluation may take longer than they are allowed to wait.
    return TrainedRun(run_dir, manifest["report"])


def save_model(model: VLM, run_dir: Path) -> None:
    """Write the model's files beside the run's others, each by renaming a finished file into place."""
    model_dir = run_dir / "model"
    with checkpoint.building(model_dir) as partial:
        model.save_pretrained(partial)
    for file in sorted(model_dir.iterdir()):
        file.replace(run_dir / file.name)
    model_dir.rmdir()
