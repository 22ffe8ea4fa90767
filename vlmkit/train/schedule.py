"""Learning-rate factors and data order: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vlmkit.data.formats.mixture import Mixture, Share
from vlmkit.data.sample import Sample
from vlmkit.recipe import Stage


def epoch_length(samples: Sequence[Sample]) -> int:
    """Samples that an epoch shows: all of them, or as many as the mixture says."""
    return sum(share.quota for share in samples.shares) if isinstance(samples, Mixture) else len(samples)


def stage_facts(stage: Stage, samples: Sequence[Sample]) -> dict[str, Any]:
    """What a checkpoint says about its stage, and what must be so again for it to be gone on from."""
    return {"stage": stage.name, "steps": total_steps(stage, epoch_length(samples)), "samples": len(samples)}


def total_steps(stage: Stage, samples: int) -> int:
    """Optimiser steps of a stage with that many samples an epoch."""
    if stage.steps is not None:
        return stage.steps
    assert stage.epochs is not None
    return max(1, math.ceil(stage.epochs * samples / stage.batch_size))


def warmup_steps(stage: Stage, steps: int) -> int:
    """Steps of the warmup of a stage with that many steps."""
    return int(stage.warmup if stage.warmup >= 1 else stage.warmup * steps)


def lr_factor(stage: Stage, step: int, steps: int) -> float:
    """Factor of every learning rate at `step` (0-based): linear warmup, then the schedule down to zero."""
    warmup = warmup_steps(stage, steps)
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
        shares: Of a mixture's sources; without them an epoch is a permutation of all samples.

    Attributes:
        samples: Samples an epoch.
    """

    def __init__(self, samples: int, seed: int, shares: Sequence[Share] = ()) -> None:
        self.samples = sum(share.quota for share in shares) if shares else samples
        self.shares = shares
        self.seed = seed
        self._epoch = -1
        self._order: Sequence[int] = ()

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, sample number) at a position of the stream."""
        epoch, place = divmod(position, self.samples)
        if epoch != self._epoch:
            self._order = array("q", self.shuffled(epoch))
            self._epoch = epoch
        return epoch, self._order[place]

    def shuffled(self, epoch: int) -> list[int]:
        """The samples of an epoch in order."""
        if self.shares:
            return mixed(self.shares, self.seed, epoch)
        return permutation(self.samples, self.seed, epoch)


def mixed(shares: Sequence[Share], seed: int, epoch: int) -> list[int]:
    """Sample numbers of an epoch of a mixture.

    Which source is next is a shuffle of the epoch's quotas. What comes from a source is the next of its own
    endless stream, pass after pass over all its samples, each pass with its own shuffle; the epoch goes on
    where the one before has stopped. So each sample of a source comes before any comes again.
    """
    streams = [_drawn(share, seed, epoch) for share in shares]
    turns = [stream for share, stream in zip(shares, streams) for _ in range(share.quota)]
    return [next(turns[place]) for place in permutation(len(turns), seed, epoch)]


def _drawn(share: Share, seed: int, epoch: int) -> Iterator[int]:
    """The numbers of a source's samples for an epoch; other sources do not change them."""
    start, own = epoch * share.quota, zlib.crc32(f"{seed}/{share.name}".encode())
    for number in range(start // share.count, -(-(start + share.quota) // share.count)):
        begin = number * share.count
        order = permutation(share.count, own, number)
        yield from (share.first + i for i in order[max(0, start - begin) : start + share.quota - begin])


def permutation(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers below `count`, shuffled for this epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
