"""One optimiser step: the same gradients for any split into micro-batches and processes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from vlmkit.data.batch import Batch
from vlmkit.train.devices import sum_dtype
from vlmkit.train.guard import Guard
from vlmkit.train.meters import StepMeter
from vlmkit.train.module import batch_weight
from vlmkit.train.prepared import backward, clip_gradient, held_back
from vlmkit.train.stage_run import StageRun

Values = dict[str, Any]
# A sum of weights that stands for none.
NOTHING = 1e-9


def take_step(
    wrapped: Any,
    optimizer: Any,
    meter: StepMeter,
    batches: list[Batch],
    run: StageRun,
    guard: Guard,
) -> Values:
    """Accumulate over the micro-batches, normalise by all supervised tokens, clip, step.

    Args:
        wrapped: The stage's module as accelerate has it.
        optimizer: Over its parameters, as `prepare` gave it.
        meter: Measures the step.
        batches: This process's micro-batches.
        run: The processes, and the largest norm.
        guard: Says whether the optimiser may step.

    Returns:
        What is written down of the step.
    """
    accelerator, weights = run.accelerator, meter.module.weights
    guard.before(wrapped)
    totals = _global_weights(batches, weights, accelerator)
    sums = {name: torch.zeros((), device=accelerator.device) for name in weights}
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with nullcontext() if last else held_back(wrapped, optimizer, accelerator):
            with accelerator.autocast():
                losses = wrapped(batch.to(accelerator.device))
            meter.forward(batch)
            for name, (total, _) in losses.items():
                sums[name] += total.detach() / totals[name]
            loss = sum(weights[name] * total / totals[name] for name, (total, _) in losses.items())
            # DDP averages over processes, and the sum over all of them is wanted.
            backward(loss * accelerator.num_processes, optimizer, accelerator, last)
    values = {name: float(accelerator.reduce(value)) for name, value in sums.items()}
    loss_value = sum(weights[name] * value for name, value in values.items())
    meter.gradients(optimizer)
    norm = clip_gradient(wrapped, accelerator, run.clip, meter.norms)
    counted = {"non_finite": 0} if guard.stage.on_non_finite == "skip" else {}
    if max(totals.values()) <= NOTHING:
        # Every sample was skipped. A step of no gradient would still decay the weights.
        guard.leave_out()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": math.nan, **dict.fromkeys(values, math.nan), "grad_norm": math.nan, **counted}
    passed = guard.passes(loss_value, norm, wrapped, batches)
    if passed:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss_value, **values, "grad_norm": norm, **{name: int(not passed) for name in counted}}


def _global_weights(
    batches: list[Batch], weights: dict[str, float], accelerator: Accelerator
) -> dict[str, float]:
    """The weight each objective's sum is divided by: over all micro-batches and all processes of the step."""
    own = [sum(batch_weight(name, b) for b in batches) for name in weights]
    device = accelerator.device
    everywhere = accelerator.reduce(torch.tensor(own, dtype=sum_dtype(device), device=device))
    return {
        name: max(float(value), NOTHING) for name, value in zip(weights, everywhere.tolist(), strict=True)
    }
