"""The steps of one stage: accumulate, normalise by all supervised tokens, clip, step, write down.

Every step is a function of (recipe, seed, step, stored state), so that a killed run goes on where it was.
"""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from vlmkit import durable
from vlmkit.data.batch import Batch
from vlmkit.errors import VlmkitError
from vlmkit.recipe import Stage
from vlmkit.train import checkpoints
from vlmkit.train.distribute import any_process, is_sharded, whole
from vlmkit.train.guard import NON_FINITE, Guard
from vlmkit.train.meters import StepMeter
from vlmkit.train.metrics import MetricsFile, Reporter
from vlmkit.train.module import StageModule, batch_weight
from vlmkit.train.probe import Probe
from vlmkit.train.schedule import epoch_length, lr_factor, total_steps
from vlmkit.train.skipped import SKIPPED, tell_skipped, write_skipped
from vlmkit.train.steps import StageData, Steps

Values = dict[str, Any]


class Interrupted(VlmkitError):
    """Ctrl-C or a termination signal: a checkpoint was written."""

    exit_code = 130


@dataclass
class StageRun:
    """Where a stage writes and whom it tells.

    Attributes:
        run_dir: The run's directory.
        accelerator: Devices and processes.
        metrics: One line a step.
        reporter: Told of each step.
        clip: Largest norm of the gradient.
        workers: Data-loading processes.
    """

    run_dir: Path
    accelerator: Accelerator
    metrics: MetricsFile
    reporter: Reporter
    clip: float = 1.0
    workers: int = 0
    stop: bool = field(default=False, init=False)

    def ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: finish the step that is under way; a second Ctrl-C does not wait."""
        # Launchers of several processes pass a Ctrl-C on that each of them got already.
        if self.stop and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self.stop = True


def run_stage(module: StageModule, stage: Stage, data: StageData, run: StageRun, resume: Path | None) -> None:
    """Train one stage to its end, from a checkpoint if one is given.

    Raises:
        Interrupted: A signal came; a checkpoint was written.
        VlmkitError: The loss or a gradient is not finite; names the samples.
    """
    if resume:
        checkpoints.load_tensors(resume, module)
    # There is no way back from shares to a module: the last checkpoint brings the numbers back.
    trained = copy.deepcopy(module) if is_sharded(run.accelerator) else module
    # Fused: one kernel a parameter in place of ten, and as exact to the bit for any threads and resume.
    optimizer = torch.optim.AdamW(trained.param_groups(stage), betas=stage.betas, fused=True)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    steps = total_steps(stage, epoch_length(data.samples))
    meter = StepMeter(trained, data, run.accelerator)
    wrapped, optimizer = run.accelerator.prepare(trained, optimizer)
    facts = {"stage": stage.name, "steps": steps, "samples": len(data.samples)}
    state: dict[str, Any] = {"step": 0}
    if resume:
        state = checkpoints.load_checkpoint(resume, trained, optimizer, facts, run.accelerator)
        if run.accelerator.is_main_process:
            # A kill may have come between the newest checkpoint and the end of the older ones.
            checkpoints.rotate(run.run_dir, stage.name)
    start = int(state["step"])
    probe = Probe(stage, data, steps, run, state.get("probe"))
    guard = Guard(stage, run, start, state.get("non_finite_in_a_row", 0))
    run.metrics.rewind(stage.name, start)
    left_out = MetricsFile(run.run_dir / SKIPPED, run.accelerator.is_main_process)
    left_out.rewind(stage.name, start)
    saved = resume
    wrapped.train()
    run.reporter.begin(stage.name, start, steps)
    with _stop_signals(run):
        for step, batches in meter.each(_batches(stage, data, run, start, steps)):
            factor = lr_factor(stage, step, steps)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            values = _step(wrapped, optimizer, meter, batches, run, guard)
            values |= {"lr": factor, **meter.values()}
            if stage.on_bad_sample == "skip":
                own = batches[0].skipped
                values["skipped"] = write_skipped(own, left_out, stage, step + 1, run.accelerator)
            values |= probe.after(step + 1, wrapped)
            run.metrics.write({"stage": stage.name, "step": step + 1, **values})
            run.reporter.step(step + 1, values)
            due = stage.checkpoint_every and (step + 1) % stage.checkpoint_every == 0
            stop = any_process(run.stop, run.accelerator)
            if step + 1 == steps or due or stop:
                state = {"step": step + 1, "non_finite_in_a_row": guard.in_a_row, "probe": probe.state}
                saved = _save(trained, optimizer, facts | state, run)
            if stop:
                raise Interrupted(f"stopped after step {step + 1} of stage {stage.name}; go on with --resume")
    if trained is not module and saved is not None:
        checkpoints.load_tensors(saved, module)
    run.reporter.end()
    tell_skipped(left_out, stage.name, run.reporter)
    guard.tell()


def _batches(
    stage: Stage, data: StageData, run: StageRun, start: int, steps: int
) -> Iterator[tuple[int, list[Batch]]]:
    """(step, micro-batches) from `start` on."""
    dataset = Steps(stage, data, run.accelerator.process_index, run.accelerator.num_processes)
    numbers = range(start, steps)
    # A loader draws a seed when it starts: of its own generator, or a resumed run's dropout would differ.
    own = torch.Generator()
    loader = DataLoader(dataset, None, sampler=numbers, num_workers=run.workers, generator=own)
    return zip(numbers, loader, strict=True)


@contextmanager
def _stop_signals(run: StageRun) -> Iterator[None]:
    """Turn Ctrl-C and termination into a request to stop; possible in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = {s: signal.signal(s, run.ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _step(
    wrapped: Any,
    optimizer: Any,
    meter: StepMeter,
    batches: list[Batch],
    run: StageRun,
    guard: Guard,
) -> Values:
    """One optimiser step over the micro-batches; returns what is written down."""
    accelerator, weights = run.accelerator, meter.module.weights
    guard.before(wrapped)
    totals = _global_weights(batches, weights, accelerator)
    sums = {name: torch.zeros((), device=accelerator.device) for name in weights}
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(wrapped):
            with accelerator.autocast():
                losses = wrapped(batch.to(accelerator.device))
            meter.forward(batch)
            for name, (total, _) in losses.items():
                sums[name] += total.detach() / totals[name]
            loss = sum(weights[name] * total / totals[name] for name, (total, _) in losses.items())
            # DDP averages over processes, and the sum over all of them is wanted.
            accelerator.backward(loss * accelerator.num_processes)
    values = {name: float(accelerator.reduce(value)) for name, value in sums.items()}
    loss_value = sum(weights[name] * value for name, value in values.items())
    meter.gradients(optimizer)
    norm = float(whole(accelerator.clip_grad_norm_(wrapped.parameters(), run.clip)))
    passed = guard.passes(loss_value, norm, wrapped, batches)
    if passed:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    left_out = {"non_finite": int(not passed)} if guard.stage.on_non_finite == "skip" else {}
    return {"loss": loss_value, **values, "grad_norm": norm, **left_out}


def _global_weights(
    batches: list[Batch], weights: dict[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """The weight each objective's sum is divided by: over all micro-batches and all processes of the step."""
    own = [sum(batch_weight(name, b) for b in batches) for name in weights]
    everywhere = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device))
    return {name: max(float(value), 1e-9) for name, value in zip(weights, everywhere.tolist(), strict=True)}


def _save(trained: nn.Module, optimizer: Any, state: dict[str, Any], run: StageRun) -> Path:
    """A checkpoint under `checkpoints/`, by the main process with what all hold; older ones go."""
    path = run.run_dir / "checkpoints" / f"{state['stage']}-step-{state['step']:06d}"
    # A power cut must not take lines of steps that the checkpoint has behind it.
    durable.sync_those_there(run.metrics.path, run.run_dir / SKIPPED, run.run_dir / NON_FINITE)
    inner = getattr(optimizer, "optimizer", optimizer)
    checkpoints.save_checkpoint(path, trained, inner, state, run.accelerator)
    if run.accelerator.is_main_process:
        checkpoints.rotate(run.run_dir, state["stage"])
    run.accelerator.wait_for_everyone()
    return path
