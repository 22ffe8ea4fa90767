"""Back to an earlier point of a run: the last checkpoint of a stage that is done, and `--resume-from`."""

from __future__ import annotations

import shutil
from pathlib import Path

from vlmkit import checkpoint
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit.recipe import Recipe
from vlmkit.train import checkpoints
from vlmkit.train.distribute import in_main_process
from vlmkit.train.guard import NON_FINITE
from vlmkit.train.intact import is_checkpoint, read_state, stage_and_step
from vlmkit.train.lock import locked
from vlmkit.train.metrics import MetricsFile, Reporter
from vlmkit.train.skipped import SKIPPED

# What has a line for a step, or some, in a run's directory.
STEP_FILES = ("metrics.jsonl", SKIPPED, NON_FINITE)
# In `checkpoints/`: what `rewind` has taken out of a run's way.
ASIDE = "set_aside"


def last_checkpoint(run_dir: Path, stage: str) -> Path:
    """The checkpoint that a stage which is done has ended with: an earlier one has other weights.

    Raises:
        VlmkitError: It is gone.
        DamagedError: What the newest one says about itself is not what was written.
    """
    there = checkpoints.of_stage(run_dir, stage)
    if there:
        state = read_state(there[-1])
        # Those of earlier versions do not say how many steps the stage has.
        if state["step"] == state.get("steps", state["step"]):
            return there[-1]
    back = there[-1].name if there else f"{stage}-step-000000"
    raise VlmkitError(
        f"{run_dir / 'checkpoints'}: stage {stage!r} is done, and its last checkpoint is gone; put it back, "
        f"or --resume-from {back} trains the steps after that one again"
    )


def rewind(run_dir: Path, name: str, reporter: Reporter) -> None:
    """Let a run that has not finished go on from an earlier checkpoint.

    Later checkpoints, of this stage and of those after it, are set aside, and lines about their steps are
    dropped. Every process calls it, before the run is resumed.

    Args:
        run_dir: The run.
        name: `STAGE-step-N` in its `checkpoints/`; with N = 0 the beginning of a stage.
        reporter: Told what was set aside.

    Raises:
        UsageError: The run is finished or in use, or there is no such checkpoint.
        DamagedError: The checkpoint is not what was written.
    """
    # Before the lock, which would leave a folder where there is no run.
    checkpoint.read_run(run_dir)
    with locked(run_dir, reporter):
        in_main_process(lambda: _rewind(run_dir, name, reporter))


def _rewind(run_dir: Path, name: str, reporter: Reporter) -> None:
    manifest = checkpoint.read_run(run_dir)
    if manifest["finished"]:
        raise UsageError(f"{run_dir} is finished, there is nothing to resume; set output=ANOTHER_DIRECTORY")
    stages = [stage.name for stage in Recipe.model_validate(manifest["recipe"]).stages]
    stage, step = _found(run_dir, name, stages, manifest["stages_done"])
    again = stages[stages.index(stage) :]
    # First: a kill from here on leaves a run that still says what is wrong with it.
    manifest["stages_done"] = stages[: -len(again)]
    checkpoint.write_json(run_dir / checkpoint.MANIFEST, manifest)
    for later in again:
        kept = step if later == stage else 0
        for file in STEP_FILES:
            MetricsFile(run_dir / file).rewind(later, kept)
        for path in checkpoints.of_stage(run_dir, later):
            if stage_and_step(path.name) > (later, kept):
                reporter.note(f"{path.name} is set aside: {_set_aside(path)}")


def _found(run_dir: Path, name: str, stages: list[str], done: list[str]) -> tuple[str, int]:
    """The stage and step of a checkpoint that is there and whole, or of a stage's beginning."""
    there = [path for stage in stages for path in checkpoints.of_stage(run_dir, stage)]
    stage, step = stage_and_step(name) if is_checkpoint(name) else (name, -1)
    if stage in stages and step == 0:
        undone = [s for s in stages[: stages.index(stage)] if s not in done]
        if undone:
            raise UsageError(f"--resume-from {name}: stage {undone[0]!r} before it is not done yet")
        return stage, step
    for path in there:
        if stage_and_step(path.name) == (stage, step):
            checkpoints.require_whole(path)
            return stage, step
    raise unknown_name("checkpoint", name, [p.name for p in there])


def _set_aside(path: Path) -> Path:
    into = path.parent / ASIDE / path.name
    into.parent.mkdir(exist_ok=True)
    shutil.rmtree(into, ignore_errors=True)
    return path.replace(into)
