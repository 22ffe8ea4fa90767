"""The steps of one stage: accumulate, normalise by all supervised tokens, clip, step, write down.

Every step is a function of (recipe, seed, step, stored state), so that a killed run goes on where it was.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from vlmkit import checkpoint
from vlmkit.data.batch import Batch
from vlmkit.data.collate import Collator, Prepared
from vlmkit.data.formats.mixture import Mixture
from vlmkit.data.problems import kind_of
from vlmkit.data.sample import Sample, Skipped, readable
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.recipe import Stage
from vlmkit.train.grouping import GroupedOrder, rough_length
from vlmkit.train.metrics import MetricsFile, Reporter, read_metrics
from vlmkit.train.module import StageModule, batch_weight
from vlmkit.train.schedule import Order, epoch_length, lr_factor, total_steps

Values = dict[str, float]
# Beside metrics.jsonl, in stages with on_bad_sample: skip.
SKIPPED = "skipped.jsonl"


class Interrupted(VlmkitError):
    """Ctrl-C or a termination signal: a checkpoint was written."""

    exit_code = 130


@dataclass(frozen=True)
class StageData:
    """What a stage trains on.

    Attributes:
        samples: All of them.
        collate: Samples to a batch.
        seed: Of the order.
    """

    samples: Sequence[Sample]
    collate: Collator
    seed: int


class Steps(Dataset[list[Batch]]):
    """Step number to this process's micro-batches: a map-style data set, so that workers need no state."""

    def __init__(self, stage: Stage, data: StageData, rank: int, world: int) -> None:
        if stage.batch_size < world:
            raise UsageError(
                f"stage {stage.name!r}: batch_size {stage.batch_size} is below {world} processes; raise it"
            )
        self.stage = stage
        self.data = data
        self.rank = rank
        self.world = world
        self.order = _order(stage, data)

    def __getitem__(self, step: int) -> list[Batch]:
        size = self.stage.batch_size
        stream = [self.order[p] for p in range(step * size, (step + 1) * size)][self.rank :: self.world]
        if self.stage.on_bad_sample == "skip":
            return self._without_bad(step, stream)
        keyed = [(self.data.samples[number], epoch) for epoch, number in stream]
        micro = self.stage.micro_batch_size or len(keyed)
        return [self.data.collate(keyed[i : i + micro]) for i in range(0, len(keyed), micro)]

    def _without_bad(self, step: int, stream: Sequence[tuple[int, int]]) -> list[Batch]:
        """The step without samples that cannot be used; nothing takes their place.

        The loss is normalised by what is supervised in the step, so what is left weighs as if alone.
        """
        ready: list[Prepared] = []
        skipped: list[Skipped] = []
        for epoch, number in stream:
            name = f"row {number}"
            try:
                sample = self.data.samples[number]
                name = sample.id
                ready.append(self.data.collate.prepare(sample, epoch))
            except VlmkitError as error:
                skipped.append(Skipped(name, kind_of(error), str(error)))
        if not ready:
            raise VlmkitError(
                f"stage {self.stage.name!r}, step {step + 1}: every sample of the step was skipped, the "
                f"first because: {skipped[0].message}; vlmkit data check lists them all"
            )
        micro = self.stage.micro_batch_size or len(ready)
        batches = [self.data.collate.batch(ready[i : i + micro]) for i in range(0, len(ready), micro)]
        return [replace(batches[0], skipped=tuple(skipped)), *batches[1:]]


def _order(stage: Stage, data: StageData) -> Order:
    """The stage's data order; grouping reads every sample's text once."""
    shares = data.samples.shares if isinstance(data.samples, Mixture) else ()
    if stage.group == "modality_length":
        # A row that cannot be read keeps its place in the order, and is skipped there.
        samples = readable(data.samples) if stage.on_bad_sample == "skip" else data.samples
        lengths = (rough_length(sample) if sample else (0, 0) for sample in samples)
        return GroupedOrder(lengths, stage.batch_size, data.seed, shares)
    return Order(len(data.samples), data.seed, shares)


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
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True


def run_stage(module: StageModule, stage: Stage, data: StageData, run: StageRun, resume: Path | None) -> None:
    """Train one stage to its end, from a checkpoint if one is given.

    Raises:
        Interrupted: A signal came; a checkpoint was written.
        VlmkitError: The loss or a gradient is not finite; names the samples.
    """
    optimizer = torch.optim.AdamW(module.param_groups(stage), betas=stage.betas)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    steps = total_steps(stage, epoch_length(data.samples))
    start = int(checkpoint.load_checkpoint(resume, module, optimizer)["step"]) if resume else 0
    run.metrics.rewind(stage.name, start)
    left_out = MetricsFile(run.run_dir / SKIPPED, run.accelerator.is_main_process)
    left_out.rewind(stage.name, start)
    wrapped, optimizer = run.accelerator.prepare(module, optimizer)
    wrapped.train()
    run.reporter.begin(stage.name, start, steps)
    with _stop_signals(run):
        for step, batches in _batches(stage, data, run, start, steps):
            factor = lr_factor(stage, step, steps)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            began, stored = time.perf_counter(), module.stored_seconds
            values = _step(wrapped, optimizer, module.weights, batches, run)
            took = time.perf_counter() - began
            values |= {"lr": factor, **_seconds(took, stored, module.stored_seconds)}
            if stage.on_bad_sample == "skip":
                values["skipped"] = _write_skipped(batches[0].skipped, left_out, stage.name, step + 1)
            run.metrics.write({"stage": stage.name, "step": step + 1, **values})
            run.reporter.step(step + 1, values)
            due = stage.checkpoint_every and (step + 1) % stage.checkpoint_every == 0
            if step + 1 == steps or due or run.stop:
                _save(module, stage, optimizer, run, step + 1)
            if run.stop:
                raise Interrupted(f"stopped after step {step + 1} of stage {stage.name}; go on with --resume")
    run.reporter.end()
    _tell_skipped(left_out, stage.name, run.reporter)


def _write_skipped(own: Sequence[Skipped], file: MetricsFile, stage: str, step: int) -> int:
    """List what all processes left out of a step; returns how many."""
    skipped: list[Skipped] = gather_object(list(own))
    for sample in skipped:
        file.write({"stage": stage, "step": step, **asdict(sample)})
    return len(skipped)


def _tell_skipped(file: MetricsFile, stage: str, reporter: Reporter) -> None:
    if not file.active or not file.path.exists():
        return
    kinds = Counter(row["kind"] for row in read_metrics(file.path) if row["stage"] == stage)
    if kinds:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        reporter.note(f"stage {stage}: {kinds.total()} samples were skipped ({counted}); see {file.path}")


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
    wrapped: Any, optimizer: Any, weights: dict[str, float], batches: list[Batch], run: StageRun
) -> Values:
    """One optimiser step over the micro-batches; returns what is written down."""
    accelerator = run.accelerator
    totals = _global_weights(batches, weights, accelerator)
    sums = {name: torch.zeros((), device=accelerator.device) for name in weights}
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(wrapped):
            losses = wrapped(batch.to(accelerator.device))
            for name, (total, _) in losses.items():
                sums[name] += total.detach() / totals[name]
            loss = sum(weights[name] * total / totals[name] for name, (total, _) in losses.items())
            # DDP averages over processes, and the sum over all of them is wanted.
            accelerator.backward(loss * accelerator.num_processes)
    values = {name: float(accelerator.reduce(value)) for name, value in sums.items()}
    loss_value = sum(weights[name] * value for name, value in values.items())
    norm = float(accelerator.clip_grad_norm_(wrapped.parameters(), run.clip))
    _refuse_non_finite(loss_value, norm, batches)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss_value, **values, "grad_norm": norm, **_counts(batches)}


def _seconds(took: float, before: float | None, after: float | None) -> Values:
    """The time of a step, without what features that runs share took of it: that depends on other runs."""
    if before is None or after is None:
        return {"seconds": took}
    return {"seconds": took - (after - before), "features_seconds": after - before}


def _counts(batches: list[Batch]) -> Values:
    """What this process worked on: tokens of all rows, and images."""
    tokens = sum(int((b.branches_BL >= 0).sum()) for b in batches if b.branches_BL is not None)
    images = sum(int((b.image_sizes[..., 0] > 0).sum()) for b in batches if b.image_sizes is not None)
    return {"tokens": tokens, "images": images}


def _global_weights(
    batches: list[Batch], weights: dict[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """The weight each objective's sum is divided by: over all micro-batches and all processes of the step."""
    own = [sum(batch_weight(name, b) for b in batches) for name in weights]
    everywhere = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device))
    return {name: max(float(value), 1e-9) for name, value in zip(weights, everywhere.tolist(), strict=True)}


def _refuse_non_finite(loss: float, norm: float, batches: list[Batch]) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        names = ", ".join(name for b in batches for name in b.sample_ids)
        raise VlmkitError(
            f"loss {loss} and gradient norm {norm} in a step with samples {names}; "
            "lower the learning rate, or look at these samples"
        )


def _save(module: StageModule, stage: Stage, optimizer: Any, run: StageRun, step: int) -> None:
    """A checkpoint under `checkpoints/`, by the main process; older ones go."""
    if run.accelerator.is_main_process:
        path = run.run_dir / "checkpoints" / f"{stage.name}-step-{step:06d}"
        inner = getattr(optimizer, "optimizer", optimizer)
        checkpoint.save_checkpoint(path, module, inner, {"stage": stage.name, "step": step})
        checkpoint.rotate(run.run_dir, stage.name)
    run.accelerator.wait_for_everyone()
