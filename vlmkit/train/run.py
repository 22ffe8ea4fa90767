"""A recipe from start to end: assemble, each stage, save, evaluate; resumable at any point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

import vlmkit
from vlmkit import checkpoint, durable
from vlmkit.assemble import assemble, build_data, check_fit, text_rules
from vlmkit.data.augment import Augmenter
from vlmkit.data.collate import Collator
from vlmkit.data.sample import Sample, readable
from vlmkit.errors import UsageError
from vlmkit.evaluate import evaluate
from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.quantize import dequantize
from vlmkit.recipe import Recipe, Stage
from vlmkit.share import SHARE_LIMIT
from vlmkit.share.shared import Shared
from vlmkit.train.curves import plot_metrics
from vlmkit.train.distribute import home_device, make_accelerator, process_state
from vlmkit.train.each_stage import Stages
from vlmkit.train.lock import LOCK, locked
from vlmkit.train.metrics import Reporter, Silent, require_plots
from vlmkit.train.precision import mixed_precision
from vlmkit.train.same_run import require_same_run
from vlmkit.train.steps import StageData
from vlmkit.train.trackers import Tracked, require_trackers
from vlmkit.vlm import VLM

# What a kill may leave of a run that had not begun.
BEFORE_A_RUN = (LOCK, f"{checkpoint.MANIFEST}.partial")


MakeShared = Callable[[Reporter, Accelerator], Shared | None]


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
    make_shared = partial(_shared, share, share_limit)
    if not recipe.trackers or not state.is_main_process:
        return _alone(recipe, resume, make_shared, reporter)
    with Tracked(recipe, reporter) as tracked:
        run = _alone(recipe, resume, make_shared, tracked)
        tracked.report(run.report)
    return run


def _alone(recipe: Recipe, resume: bool, make_shared: MakeShared, reporter: Reporter) -> TrainedRun:
    """Run a recipe while no other process trains into its directory."""
    manifest = look_for_run(recipe, resume)
    with ExitStack() as held:
        if manifest is not None:
            held.enter_context(locked(recipe.run_dir, reporter))
            # Another process may have written until now.
            manifest = look_for_run(recipe, resume)
        return _train(recipe, manifest, held, make_shared, reporter)


def _shared(share: Path | None, limit: float, reporter: Reporter, accelerator: Accelerator) -> Shared | None:
    return Shared(share, limit, accelerator, reporter.note) if share is not None else None


def _train(
    recipe: Recipe,
    manifest: dict[str, Any] | None,
    held: ExitStack,
    make_shared: MakeShared,
    reporter: Reporter,
) -> TrainedRun:
    """Run a recipe, or what is left of it.

    Args:
        recipe: What to do.
        manifest: Of the run that is resumed, whose directory is held; None for a new run.
        held: Where a new run's directory is held, too.
        make_shared: Makes what the run shares with others.
        reporter: Told of the progress.
    """
    run_dir, state = recipe.run_dir, process_state()
    if manifest is not None and manifest["finished"]:
        return _evaluated(recipe, None, manifest, reporter)
    mixed, reason = mixed_precision(recipe.precision, state.device)
    accelerator = make_accelerator(mixed)
    shared = make_shared(reporter, accelerator)
    model = assemble(recipe).to(home_device(accelerator))
    check_fit(recipe, model)
    # Everything that can be missing is looked for before the first step, not after hours of them.
    data = [_stage_data(recipe, stage, model, shared) for stage in recipe.stages]
    _test_samples(recipe)
    require_plots()
    # No process may look for a run after another has begun it.
    accelerator.wait_for_everyone()
    if manifest is None:
        held.enter_context(locked(run_dir, reporter, new=True))
    manifest = _begin_run(recipe, manifest, accelerator.is_main_process)
    stages = Stages(recipe, model, data, accelerator, shared, reporter, reason, manifest)
    for number in range(len(recipe.stages)):
        stages.bring_to_its_end(number)
    if recipe.model.llm.quantize is not None:
        dequantize(model)
    if accelerator.is_main_process:
        _save_run(model, run_dir, manifest)
    accelerator.wait_for_everyone()
    return _evaluated(recipe, model, manifest, reporter)


def look_for_run(recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """The manifest of the run that is to be resumed, None for a new run; changes nothing.

    Raises:
        UsageError: The run directory holds something else, a run of another recipe, or one and `resume` is
            not set.
    """
    run_dir = recipe.run_dir
    if not (run_dir / checkpoint.MANIFEST).exists():
        if run_dir.exists() and any(p.name not in BEFORE_A_RUN for p in run_dir.iterdir()):
            raise UsageError(f"{run_dir} exists, is not empty and holds no run; set output=ANOTHER_DIRECTORY")
        return None
    if not resume:
        raise UsageError(f"{run_dir} holds a run already; add --resume, or set output=ANOTHER_DIRECTORY")
    manifest = checkpoint.read_run(run_dir)
    require_same_run(run_dir, manifest["recipe"], recipe)
    return manifest


def _begin_run(recipe: Recipe, manifest: dict[str, Any] | None, write: bool) -> dict[str, Any]:
    """Put manifest and resolved recipe into the run directory, where they are not, and return the manifest.

    A new run's come once the model could be assembled. A resumed run's have its stages as they are now.
    """
    run_dir, resolved = recipe.run_dir, recipe.model_dump(mode="json")
    new: dict[str, Any] = {
        "kind": "vlmkit run",
        "version": vlmkit.__version__,
        "recipe": resolved,
        "stages_done": [],
        "finished": False,
        "report": None,
    }
    current = manifest or new
    current["recipe"] = {**current["recipe"], "stages": resolved["stages"]}
    if write and (manifest is None or current["recipe"] != checkpoint.read_run(run_dir)["recipe"]):
        checkpoint.write_json(run_dir / checkpoint.MANIFEST, current)
    text, file = yaml.safe_dump(current["recipe"], sort_keys=False), run_dir / "recipe.yaml"
    # A kill may have come between the two.
    if write and not (file.exists() and file.read_text(encoding="utf-8") == text):
        checkpoint.write_text(file, text)
    return current


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
    stated = stage.augment
    changes = None if stated is None else Augmenter(**stated.model_dump(), seed=recipe.seed)
    collate = Collator(processor.specs, rules, stage.hflip, recipe.seed, processor.fit, changes)
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
    durable.sync(run_dir)
