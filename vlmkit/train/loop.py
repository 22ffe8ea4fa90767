"""The steps of one stage, and what happens around each: the rate, the figures, the checkpoint.

Every step is a function of (recipe, seed, step, stored state), so that a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vlmkit import durable
from vlmkit.data.batch import Batch
from vlmkit.recipe import Stage
from vlmkit.train import checkpoints
from vlmkit.train.distribute import any_process, is_sharded
from vlmkit.train.guard import NON_FINITE, Guard
from vlmkit.train.lend import lend, take_back
from vlmkit.train.meters import StepMeter
from vlmkit.train.metrics import MetricsFile
from vlmkit.train.module import StageModule
from vlmkit.train.prepared import prepare
from vlmkit.train.probe import Probe
from vlmkit.train.schedule import lr_factor, stage_facts
from vlmkit.train.skipped import SKIPPED, tell_skipped, write_skipped
from vlmkit.train.stage_run import Interrupted, StageRun, leave_signals_to_main, stop_signals
from vlmkit.train.steps import Failed, StageData, Steps, ToldSteps, opened
from vlmkit.train.take_step import take_step


def run_stage(module: StageModule, stage: Stage, data: StageData, run: StageRun, resume: Path | None) -> None:
    """Train one stage to its end, from a checkpoint if one is given.

    A module that is trained as shares has no numbers while it trains, nor after an error.

    Raises:
        Interrupted: A signal came; a checkpoint was written.
        VlmkitError: The loss or a gradient is not finite; names the samples.
    """
    if resume:
        checkpoints.load_tensors(resume, module)
    trained = lend(module) if is_sharded(run.accelerator) else module
    loop = StageLoop(trained, stage, data, run, resume)
    run.reporter.begin(stage.name, loop.start, loop.steps)
    with stop_signals(run):
        for step, batches in loop.meter.each(_batches(stage, data, run, loop.start, loop.steps)):
            loop.step(step, batches)
            loop.save_where_due(step + 1)
    if trained is not module:
        take_back(module, trained)
        if loop.saved is not None:
            # Its buffers are those of the main process for all; the module's own did not train.
            checkpoints.load_tensors(loop.saved, module)
    loop.end()


class StageLoop:
    """A stage between two steps: what trains it, what watches it, and where it is.

    Args:
        trained: The stage's module, with the tensors of the checkpoint if there is one.
        stage: The stage.
        data: What it trains on.
        run: Where it writes and whom it tells.
        resume: The checkpoint to go on from.

    Attributes:
        steps: All of the stage's.
        start: Those that the checkpoint has behind it.
        saved: The newest checkpoint.
    """

    def __init__(
        self, trained: StageModule, stage: Stage, data: StageData, run: StageRun, resume: Path | None
    ) -> None:
        self.trained, self.stage, self.run, self.saved = trained, stage, run, resume
        # Fused: one kernel a parameter in place of ten, and as exact to the bit for any threads and resume.
        optimizer = torch.optim.AdamW(trained.param_groups(stage), betas=stage.betas, fused=True)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.facts = stage_facts(stage, data.samples)
        self.steps: int = self.facts["steps"]
        self.meter = StepMeter(trained, data, run.accelerator)
        self.wrapped, self.optimizer = prepare(trained, optimizer, run.accelerator, run.clip)
        state: dict[str, Any] = self._restored(resume) if resume else {"step": 0}
        self.start = int(state["step"])
        self.probe = Probe(stage, data, self.steps, run, state.get("probe"))
        self.guard = Guard(stage, run, self.start, state.get("non_finite_in_a_row", 0))
        self.skipped = MetricsFile(run.run_dir / SKIPPED, run.accelerator.is_main_process)
        self.skipped.rewind(stage.name, self.start)
        self._tell_start(run.metrics.rewind(stage.name, self.start))
        self.wrapped.train()
        if resume:
            # Last: nothing from here to the first step draws.
            checkpoints.load_random(resume, run.accelerator)

    def _restored(self, path: Path) -> dict[str, Any]:
        """The state of a checkpoint; the optimiser is as it was then."""
        state = checkpoints.load_checkpoint(path, self.trained, self.optimizer, self.facts)
        if self.run.accelerator.is_main_process:
            # A kill may have come between the newest checkpoint and the end of the older ones.
            checkpoints.rotate(self.run.run_dir, self.stage.name)
        return state

    def _tell_start(self, again: int) -> None:
        """Say from where a stage goes on, which need not be where it was killed."""
        if self.start or again:
            more = f"; {again} later ones are done again" if again else ""
            self.run.reporter.note(
                f"stage {self.stage.name} goes on after step {self.start} of {self.steps}{more}"
            )

    def step(self, step: int, batches: list[Batch]) -> None:
        """Take the step that has `step` ones before it, and write down what there is to say of it."""
        stage, run, number = self.stage, self.run, step + 1
        factor = lr_factor(stage, step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        values = take_step(self.wrapped, self.optimizer, self.meter, batches, run, self.guard)
        values |= {"lr": factor, **self.meter.values()}
        if stage.on_bad_sample == "skip":
            own = batches[0].skipped
            values["skipped"] = write_skipped(own, self.skipped, stage, number, run.accelerator)
        values |= self.probe.after(number, self.wrapped)
        run.metrics.write({"stage": stage.name, "step": number, **values})
        run.reporter.step(number, values)

    def save_where_due(self, number: int) -> None:
        """Write a checkpoint after this many steps if it is time to.

        Raises:
            Interrupted: One of the processes was asked to stop.
        """
        every = self.stage.checkpoint_every
        stop = any_process(self.run.stop, self.run.accelerator)
        if stop or number == self.steps or (every and number % every == 0):
            self._save(number)
        if stop:
            raise Interrupted(f"stopped after step {number} of stage {self.stage.name}; go on with --resume")

    def _save(self, number: int) -> None:
        """A checkpoint under `checkpoints/`, by the main process with what all hold; older ones go."""
        run = self.run
        path = run.run_dir / "checkpoints" / f"{self.stage.name}-step-{number:06d}"
        # A power cut must not take lines of steps that the checkpoint has behind it.
        durable.sync_those_there(run.metrics.path, run.run_dir / SKIPPED, run.run_dir / NON_FINITE)
        watched = {"non_finite_in_a_row": self.guard.in_a_row, "probe": self.probe.state}
        state = {**self.facts, "step": number, **watched}
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        checkpoints.save_checkpoint(path, self.trained, optimizer, state, run.accelerator)
        if run.accelerator.is_main_process:
            checkpoints.rotate(run.run_dir, self.stage.name)
        run.accelerator.wait_for_everyone()
        self.saved = path

    def end(self) -> None:
        """Say what there is to say of the whole stage."""
        self.run.reporter.end()
        tell_skipped(self.skipped, self.stage.name, self.run.reporter)
        self.guard.tell()


def _batches(
    stage: Stage, data: StageData, run: StageRun, start: int, steps: int
) -> Iterator[tuple[int, list[Batch]]]:
    """(step, micro-batches) from `start` on."""
    own_steps = Steps(stage, data, run.accelerator.process_index, run.accelerator.num_processes)
    numbers = range(start, steps)
    # A loader draws a seed when it starts: of its own generator, or a resumed run's dropout would differ.
    own = torch.Generator()
    loader = DataLoader(
        ToldSteps(own_steps),
        None,
        sampler=numbers,
        num_workers=run.workers,
        generator=own,
        worker_init_fn=leave_signals_to_main,
    )
    return _numbered(numbers, iter(loader))


def _numbered(
    numbers: Iterable[int], items: Iterator[list[Batch] | Failed]
) -> Iterator[tuple[int, list[Batch]]]:
    """(step, micro-batches); what loads them ends with the last, and with an error."""
    try:
        yield from zip(numbers, map(opened, items), strict=True)
    finally:
        # An error that is kept keeps this frame; Python would wait at its end for processes, and they for it.
        del items
