"""Finished stages: one run trains, the others take over what it found.

`STAGES/KEY/` is shaped like a run: `checkpoints/STAGE-step-N/`, `metrics.jsonl` and the lists beside it. It
holds the tensors that the stage's objectives run through; all others of a run that takes it over stay that
run's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmkit import checkpoint
from vlmkit.budget import Budget
from vlmkit.errors import VlmkitError
from vlmkit.objectives import objective_weights
from vlmkit.recipe import Recipe, Stage
from vlmkit.share import keys
from vlmkit.share.features import StoredFeatures
from vlmkit.train import checkpoints
from vlmkit.train.intact import DamagedError, read_state
from vlmkit.train.metrics import MetricsFile, read_metrics
from vlmkit.train.module import StageModule
from vlmkit.train.probe_samples import VERSIONS
from vlmkit.train.restore import STEP_FILES
from vlmkit.train.same_run import CHANGES_NO_NUMBER
from vlmkit.train.schedule import stage_facts
from vlmkit.train.stage_run import StageRun
from vlmkit.train.steps import StageData

# The samples themselves are in the key, not where they come from. What happens at a bad sample or step is in
# it, too: whether there was one is not known before.
FREE = ("data", *CHANGES_NO_NUMBER)
# Names of tensors in a `StageModule`.
ENCODERS = ("vlm.encoders.", "contrastive.")
EVERYTHING = ("",)


@dataclass(frozen=True)
class StageWork:
    """A stage that is about to be trained: what trains is set, nothing has.

    Attributes:
        recipe: Of the run.
        number: Of the stage in it.
        module: The model with the stage's objectives.
        data: Samples and collator.
        run: Where the stage writes.
    """

    recipe: Recipe
    number: int
    module: StageModule
    data: StageData
    run: StageRun

    @property
    def stage(self) -> Stage:
        """The stage in the recipe."""
        return self.recipe.stages[self.number]

    @property
    def scope(self) -> Sequence[str]:
        """Prefixes of the tensors that decide about the stage's result, and that it can change.

        The contrastive objective runs through the encoders alone, so the language model and the connector may
        be others; unless a budget of image tokens, which the connector counts, decides about the pixels.
        """
        alone = set(objective_weights(self.stage.objective)) == {"contrastive"}
        unlimited = Budget(**self.module.vlm.config.image_tokens) == Budget()
        return ENCODERS if alone and unlimited and set(self.stage.train) == {"encoder"} else EVERYTHING


def stage_key(work: StageWork) -> str:
    """What the stage's result is a function of, down to the last bit on a CPU."""
    stage, model, accelerator = work.stage, work.module.vlm, work.run.accelerator
    facts: dict[str, Any] = {
        "machine": keys.machine(accelerator.device, accelerator.mixed_precision),
        "seed": [work.recipe.seed, work.number],
        "stage": {k: v for k, v in stage.model_dump(mode="json").items() if k not in FREE},
        "data": keys.data_hash(work.data.samples),
        # Features that come from the store were encoded one by one: their last bits are others.
        "stored_features": isinstance(work.module.encode, StoredFeatures),
    }
    if work.scope is ENCODERS:
        facts["encoders"] = keys.encoders_facts(model)
    else:
        facts["model"] = keys.model_facts(model)
        facts["prompt"] = stage.prompt or work.recipe.model.prompt
    return keys.digest(facts)


def take(entry: Path, work: StageWork) -> None:
    """Bring model, metrics and checkpoint to where training the stage would have brought them.

    Raises:
        VlmkitError: What is stored is damaged, or has other steps or samples than the stage.
    """
    name, run_dir = work.stage.name, work.run.run_dir
    found = checkpoints.latest_checkpoint(entry, name)
    if found is None:
        raise VlmkitError(f"{entry} holds no checkpoint of stage {name!r}; delete it, it is only a cache")
    try:
        _require_as_many(entry, read_state(found), work)
        checkpoints.require_whole(found)
        checkpoints.copy_tensors(found, _chosen(checkpoints.trained_tensors(work.module), work.scope))
    except DamagedError as error:
        raise VlmkitError(f"{entry} is damaged ({error.reason}); delete it, it is only a cache") from error
    # Before the checkpoint: a run that is killed here begins the stage anew, and drops these rows.
    for file in STEP_FILES:
        own = MetricsFile(run_dir / file)
        own.rewind(name, 0)
        for row in read_metrics(entry / file) if (entry / file).exists() else []:
            own.write(row)
    _tell_of_probes(entry, work)
    with checkpoint.building(run_dir / "checkpoints" / found.name) as partial:
        checkpoints.derive(found, partial, checkpoints.trained_tensors(work.module))


def keep(entry: Path, work: StageWork) -> None:
    """Store a stage that was trained; it appears under its name only when it is whole."""
    name, run_dir = work.stage.name, work.run.run_dir
    found = checkpoints.latest_checkpoint(run_dir, name)
    assert found is not None
    with checkpoint.building(entry) as partial:
        into = partial / "checkpoints" / found.name
        into.mkdir(parents=True)
        checkpoints.derive(found, into, _chosen(checkpoints.read_tensors(found), work.scope))
        for file in STEP_FILES:
            there = read_metrics(run_dir / file) if (run_dir / file).exists() else []
            rows = [row for row in there if row["stage"] == name]
            (partial / file).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _require_as_many(entry: Path, state: Mapping[str, Any], work: StageWork) -> None:
    wanted = stage_facts(work.stage, work.data.samples)
    found = {name: state.get(name) for name in wanted}
    if found != wanted:
        raise VlmkitError(
            f"{entry} is of another stage ({found}, wanted {wanted}); delete it, it is only a cache"
        )


def _tell_of_probes(entry: Path, work: StageWork) -> None:
    """Repeat what the stage's last look at whether it uses the picture has found."""
    probed = [row for row in read_metrics(entry / "metrics.jsonl") if "probe/true" in row]
    if probed:
        last = probed[-1]
        figures = ", ".join(f"{last[f'probe/{v}']:.4g} with {v} images" for v in VERSIONS)
        work.run.reporter.note(
            f"stage {work.stage.name}, its last probe, step {last['step']}: loss {figures}"
        )


def _chosen(tensors: dict[str, Tensor], scope: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(tuple(scope))}
