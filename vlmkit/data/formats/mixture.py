"""Several data sets in stated shares.

The rule: an epoch has a fixed number of samples, and each source a fixed number of them, its share by
weight, rounded so that the sum is exact (largest remainders first). What an epoch shows is a function of seed
and epoch alone (`vlmkit.train.schedule.mixed`), so that a resumed run goes on with the same samples.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from vlmkit.data.formats.lazy import LazySamples
from vlmkit.data.sample import Sample, row_name
from vlmkit.errors import UsageError, unknown_name
from vlmkit.recipe import Block

Epoch = Literal["total", "first_exhausted", "all_exhausted"]


class Source(BaseModel):
    """One data set of a mixture.

    Attributes:
        name: Names it in metrics and in the ids of its samples.
        data: The block that names it, as in a stage.
        weight: Its share is this over the sum of all weights; for all sources or for none.
        limit: Use its first so many samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    data: Block
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    limit: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Share:
    """What an epoch shows of a source.

    Attributes:
        name: Of the source.
        first: Number of its first sample among those of all sources.
        count: Its samples.
        quota: How many of them an epoch shows; more than there are repeats some.
    """

    name: str
    first: int
    count: int
    quota: int


def mixture(sources: list[Source], epoch: int | Epoch = "total", check: bool = True) -> Sequence[Sample]:
    """Several data sets together, in shares by weight, each with an optional limit.

    Without weights an epoch shows every sample of every source once. With weights it has as many samples,
    but each source has its share of them: a source with a small share goes on in the next epoch where it
    stopped, one with a large share starts again in another order. Every sample of a source comes before any
    comes again.

    Args:
        sources: `name`, `data` (a block with a `type`), and optionally `weight` and `limit`.
        epoch: Samples an epoch: a number; `total`, as many as all sources have; `first_exhausted`, so many
            that no source repeats; `all_exhausted`, so many that every sample of every source is shown.
        check: Of the sources that have such an option.

    Raises:
        UsageError: Names that are not unique, weights for some sources only, a mixture within a mixture, or a
            source that an epoch is too short for.
    """
    from vlmkit.data.formats import DATA_FORMATS, with_check

    sources = TypeAdapter(list[Source]).validate_python(sources)
    _check(sources)
    parts: list[Sequence[Sample]] = []
    for source in sources:
        if source.data.type not in DATA_FORMATS or source.data.type == "mixture":
            names = DATA_FORMATS.keys() - {"mixture"}
            raise unknown_name(f"data format of source {source.name!r}", source.data.type, names)
        make = DATA_FORMATS[source.data.type]
        parts.append(make(**with_check(make, source.data.options, check)))
    counts = [min(len(part), source.limit or len(part)) for source, part in zip(sources, parts)]
    weights = [source.weight for source in sources]
    given = [Fraction(n if weight is None else str(weight)) for n, weight in zip(counts, weights)]
    quotas = apportion(given, _length(counts, given, epoch))
    for source, quota in zip(sources, quotas):
        if not quota:
            raise UsageError(
                f"source {source.name!r} has no sample in an epoch of {sum(quotas)}: its share is too small; "
                "raise its weight or epoch, or remove it"
            )
    firsts = [0, *accumulate(counts)]
    shares = [Share(s.name, *numbers) for s, *numbers in zip(sources, firsts, counts, quotas)]
    return Mixture(parts, shares)


def _check(sources: Sequence[Source]) -> None:
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"the sources of a mixture need names, each its own; found {', '.join(names) or 'none'}"
        )
    without = [source.name for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise UsageError(
            f"sources {', '.join(without)} have no weight and others do; give all of them one, or none"
        )


def _length(counts: Sequence[int], weights: Sequence[Fraction], epoch: int | Epoch) -> int:
    """Samples an epoch."""
    if isinstance(epoch, int):
        if epoch < 1:
            raise UsageError(f"epoch is {epoch}; give 1 or more samples")
        return epoch
    if epoch == "total":
        return sum(counts)
    lengths = [count * sum(weights) / weight for count, weight in zip(counts, weights)]
    return math.floor(min(lengths)) if epoch == "first_exhausted" else math.ceil(max(lengths))


def apportion(weights: Sequence[Fraction], length: int) -> list[int]:
    """Whole numbers in proportion to the weights, in sum `length`, each less than 1 from its exact value."""
    exact = [weight * length / sum(weights) for weight in weights]
    quotas = [math.floor(value) for value in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in by_rest[: length - sum(quotas)]:
        quotas[i] += 1
    return quotas


class Mixture(LazySamples):
    """The samples of all sources one after the other, each once; what an epoch shows is the order's to say.

    Args:
        parts: Samples of each source.
        shares: What an epoch shows of each.
    """

    def __init__(self, parts: Sequence[Sequence[Sample]], shares: Sequence[Share]) -> None:
        self.parts = list(parts)
        self.shares = list(shares)
        self.ends = [share.first + share.count for share in shares]

    def __len__(self) -> int:
        return self.ends[-1]

    def share_of(self, number: int) -> int:
        """Which source a sample is from."""
        return bisect.bisect_right(self.ends, number)

    def read(self, number: int) -> Sample:
        """A sample with its source, and an id that is its own among all sources."""
        i = self.share_of(number)
        share = self.shares[i]
        sample = self.parts[i][number - share.first]
        return replace(sample, id=f"{share.name}/{sample.id}", source=share.name)

    def name(self, number: int) -> str:
        """What a row is called that cannot be read, by its source's name for it."""
        i = self.share_of(number)
        share = self.shares[i]
        return f"{share.name}/{row_name(self.parts[i], number - share.first)}"
