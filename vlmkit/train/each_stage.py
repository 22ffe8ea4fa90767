"""The stages of a run, one after the other: each is trained, taken over or brought back, and finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vlmkit import checkpoint
from vlmkit.recipe import Recipe, Stage
from vlmkit.share.shared import Shared, StageWork
from vlmkit.train import checkpoints
from vlmkit.train.distribute import home_device, own_randomness
from vlmkit.train.intact import is_hashed, read_state
from vlmkit.train.loop import run_stage
from vlmkit.train.metrics import MetricsFile, Reporter
from vlmkit.train.module import StageModule
from vlmkit.train.reach import freeze_unreached
from vlmkit.train.restore import last_checkpoint
from vlmkit.train.stage import PartRow, apply_stage, finish_stage
from vlmkit.train.stage_run import StageRun
from vlmkit.train.steps import StageData
from vlmkit.vlm import VLM


@dataclass(frozen=True)
class Stages:
    """What the stages of a run have in common.

    Attributes:
        recipe: Of the run.
        model: Every stage changes it.
        data: Of each stage.
        accelerator: The processes.
        shared: What the run shares with others.
        reporter: Told of the progress.
        precision: Mixed precision and its reason, in words.
        manifest: Of the run; `stages_done` and `merged` grow.
    """

    recipe: Recipe
    model: VLM
    data: Sequence[StageData]
    accelerator: Accelerator
    shared: Shared | None
    reporter: Reporter
    precision: str
    manifest: dict[str, Any]

    def bring_to_its_end(self, number: int) -> None:
        """Leave the model as it is after a stage, whether that is to be trained or done already."""
        stage = self.recipe.stages[number]
        module, rows = self._applied(number)
        newest = checkpoints.latest_checkpoint(self.recipe.run_dir, stage.name)
        if newest is not None and not is_hashed(read_state(newest)):
            self.reporter.note(f"{newest.name} is of an earlier version of vlmkit: it has no hashes to check")
        if self._is_done(stage):
            checkpoints.load_tensors(last_checkpoint(self.recipe.run_dir, stage.name), module)
        else:
            self.reporter.stage(stage.name, rows, self.precision)
            self._train(number, module, newest)
        merged = finish_stage(self.model)
        if merged is not None:
            # By how much merging adapters changed logits, for who wants to know.
            self.manifest["merged"] = {**self.manifest.get("merged", {}), stage.name: merged}

    def _is_done(self, stage: Stage) -> bool:
        return stage.name in self.manifest["stages_done"]

    def _applied(self, number: int) -> tuple[StageModule, list[PartRow]]:
        """The model with a stage applied, and the table of what trains."""
        stage, seed = self.recipe.stages[number], self.recipe.seed + number
        # Before the stage is applied: fresh adapters must not depend on what ran before in this process.
        torch.manual_seed(seed)
        rows = apply_stage(self.model, stage)
        encode = None
        if self.shared is not None and not self._is_done(stage):
            encode = self.shared.features(self.model, stage, self.data[number])
        module = StageModule(self.model, stage, encode).to(home_device(self.accelerator))
        rows = freeze_unreached(module, rows)
        own_randomness(seed, self.accelerator)
        return module, rows

    def _train(self, number: int, module: StageModule, resume: Path | None) -> None:
        """Train a stage, or take it over from another run, and write down that it is done."""
        stage, data, run_dir = self.recipe.stages[number], self.data[number], self.recipe.run_dir
        writes = self.accelerator.is_main_process
        metrics = MetricsFile(run_dir / "metrics.jsonl", writes)
        run = StageRun(run_dir, self.accelerator, metrics, self.reporter, stage.clip, stage.workers)
        train = partial(run_stage, module, stage, data, run, resume)
        if self.shared is None:
            train()
        else:
            self.shared.train(StageWork(self.recipe, number, module, data, run), train)
        self.accelerator.free_memory()
        self.manifest["stages_done"].append(stage.name)
        if writes:
            checkpoint.write_json(run_dir / checkpoint.MANIFEST, self.manifest)
