"""Learning-rate factors and data order: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math

import torch

from vlmkit.recipe import Stage


def total_steps(stage: Stage, samples: int) -> int:
    """Optimiser steps of a stage over that many samples."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return max(1, math.ceil(stage.epochs * samples / stage.batch_size))


def lr_factor(stage: Stage, step: int, steps: int) -> float:
    """Factor of every learning rate at `step` (0-based): linear warmup, then the schedule down to zero."""
    warmup = int(stage.warmup if stage.warmup >= 1 else stage.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if stage.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done)) if stage.schedule == "cosine" else 1 - done


class Order:
    """An endless stream over sample numbers, by position: epoch after epoch, each with its own shuffle.

    Args:
        samples: Number of samples.
        seed: Of the shuffles.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, sample number) at a position of the stream."""
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            self._order = self.shuffled(epoch)
            self._epoch = epoch
        return epoch, self._order[place]

    def shuffled(self, epoch: int) -> list[int]:
        """The samples of an epoch in order."""
        return permutation(self.samples, self.seed, epoch)


def permutation(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers below `count`, shuffled for this epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
