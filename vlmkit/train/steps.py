"""A step's number to this process's micro-batches: a function of the seed and the number alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from vlmkit.data.batch import Batch
from vlmkit.data.collate import Collator, Prepared
from vlmkit.data.formats.mixture import Mixture
from vlmkit.data.problems import PROBLEM_ERRORS, kind_of
from vlmkit.data.sample import Sample, Skipped, read_row, readable
from vlmkit.errors import MissingExtraError, UsageError, VlmkitError
from vlmkit.objectives import IGNORE
from vlmkit.recipe import Stage
from vlmkit.train.grouping import GroupedOrder, Length, rough_length
from vlmkit.train.schedule import Order


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
    """Step number to this process's micro-batches: a map-style data set, so that workers need no state.

    Every process has as many micro-batches, or one would wait for another's parameters: where its samples do
    not fill them, the rest are batches of no sample.
    """

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
        first = step * size
        ready, skipped = self._prepared(range(first + self.rank, first + size, self.world))
        spare = ready[:1] or self._stand_in(step, skipped)
        share = math.ceil(size / self.world) if self.world > 1 else len(ready) or 1
        micro = self.stage.micro_batch_size or share
        parts = [ready[i : i + micro] for i in range(0, share, micro)]
        collate = self.data.collate.batch
        batches = [collate(part) if part else unsupervised(collate(spare)) for part in parts]
        if skipped:
            batches[0] = replace(batches[0], skipped=tuple(skipped))
        return batches

    def _prepared(self, positions: Sequence[int]) -> tuple[list[Prepared], list[Skipped]]:
        """The samples at these positions of the order, and those that cannot be used: nothing replaces them.

        The loss is normalised by what is supervised in the step, so what is left weighs as if alone.
        """
        ready: list[Prepared] = []
        skipped: list[Skipped] = []
        for epoch, number in map(self.order.__getitem__, positions):
            row = read_row(self.data.samples, number)
            try:
                if row.sample is None:
                    assert row.error is not None
                    raise row.error
                ready.append(self.data.collate.prepare(row.sample, epoch))
            except VlmkitError as error:
                if self.stage.on_bad_sample == "error":
                    raise
                skipped.append(Skipped(row.name, kind_of(error), str(error)))
        return ready, skipped

    def _stand_in(self, step: int, skipped: Sequence[Skipped]) -> list[Prepared]:
        """A sample whose rows go through the model, unsupervised, where all of this process's were skipped.

        Raises:
            VlmkitError: There is none in all the data.
        """
        after = (step + 1) * self.stage.batch_size
        for position in range(after, after + len(self.data.samples)):
            ready, _ = self._prepared([position])
            if ready:
                return ready
        raise VlmkitError(
            f"stage {self.stage.name!r}, step {step + 1}: no sample of the data can be used, one of them "
            f"because: {skipped[0].message}; vlmkit data check lists them all"
        )


@dataclass(frozen=True)
class Failed:
    """In place of a step's batches: why there are none.

    A loader makes a traceback in words of what a worker raises, and waits for ever for what cannot be
    pickled. So the class, which is one that every process can import, and the message come alone.

    Attributes:
        kind: Of the error; of a class that is not in `TOLD`, the nearest of its bases that is.
        message: What it says.
    """

    kind: type[VlmkitError]
    message: str

    @classmethod
    def by(cls, error: VlmkitError) -> Failed:
        """What is told of an error."""
        return cls(next(kind for kind in type(error).__mro__ if kind in TOLD), str(error))

    def error(self) -> VlmkitError:
        """The error again, without asking its class what it is made of."""
        return self.kind.__new__(self.kind, self.message)


TOLD: tuple[type[VlmkitError], ...] = (VlmkitError, UsageError, MissingExtraError, *PROBLEM_ERRORS)


class ToldSteps(Dataset[list[Batch] | Failed]):
    """`Steps` for a loader with worker processes; `opened` gives the batches, or raises."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def __getitem__(self, step: int) -> list[Batch] | Failed:
        try:
            return self.steps[step]
        except VlmkitError as error:
            if get_worker_info() is None:
                raise
            return Failed.by(error)


def opened(item: list[Batch] | Failed) -> list[Batch]:
    """What a loader of `ToldSteps` gave.

    Raises:
        VlmkitError: The error of the worker, in its words and of its class.
    """
    if isinstance(item, Failed):
        raise item.error()
    return item


def unsupervised(batch: Batch) -> Batch:
    """A batch of no sample: its rows go through the model, and no loss asks about them."""
    none: dict[str, Any] = {"sample_ids": (), "captions": ((),) * len(batch.captions)}
    if batch.labels_BL is not None:
        none["labels_BL"] = torch.full_like(batch.labels_BL, IGNORE)
    return replace(batch, **none)


def _order(stage: Stage, data: StageData) -> Order:
    """The stage's data order; grouping reads every sample's text once."""
    shares = data.samples.shares if isinstance(data.samples, Mixture) else ()
    if stage.group == "modality_length":
        samples = readable(data.samples) if stage.on_bad_sample == "skip" else data.samples
        return GroupedOrder(_lengths(samples), stage.batch_size, data.seed, shares)
    return Order(len(data.samples), data.seed, shares)


def _lengths(samples: Iterable[Sample | None]) -> list[Length]:
    """What samples are grouped by.

    A row that cannot be read keeps its place in the order, to be skipped there. It counts as long as one that
    can: of one length of their own, such rows would fill whole steps, which would then train nothing.
    """
    found = [rough_length(sample) if sample else None for sample in samples]
    known = [length for length in found if length is not None] or [(0, 0)]
    return [length or known[i * len(known) // len(found)] for i, length in enumerate(found)]
