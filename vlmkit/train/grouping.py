"""Data order with batches of one modality and similar length: little padding, no batch half without images.

After LLaVA 1.5's `group_by_modality_length` (github.com/haotian-liu/LLaVA, `llava/train/llava_trainer.py`).
There the samples of a step are of random lengths, which are evened out over the processes; here they are
similar, as in transformers' `LengthGroupedSampler`, whose mega-batches these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmkit.data.formats.mixture import Share
from vlmkit.data.sample import Sample
from vlmkit.train.schedule import Order, permutation

MEGA = 50
Length = tuple[int, int]


def rough_length(sample: Sample) -> Length:
    """What a sample's length goes by without opening an image: (images, characters of all conversations)."""
    return len(sample.images), sum(len(m.text) for c in sample.conversations for m in c)


class GroupedOrder(Order):
    """As `Order`, each epoch a permutation, but cut where the stream's batches are.

    A batch is positions `k * batch_size` up to the next one. Of an epoch all are of one modality (images, or
    text alone) but those with the samples that are left over: at most one, and the two that the epoch shares
    with its neighbours where the number of samples is no multiple of the batch size.

    Args:
        lengths: Of every sample, from `rough_length`.
        batch_size: Samples a step over all processes.
        seed: Of the shuffles.
        shares: Of a mixture's sources.
    """

    def __init__(
        self, lengths: Iterable[Length], batch_size: int, seed: int, shares: Sequence[Share] = ()
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        super().__init__(len(self.lengths), seed, shares)

    def shuffled(self, epoch: int) -> list[int]:
        """The samples of an epoch in order."""
        size = self.batch_size
        # What the epoch before leaves of its last batch, and what this one leaves to the next.
        head = min(-epoch * self.samples % size, self.samples)
        tail = (self.samples - head) % size
        drawn = super().shuffled(epoch)
        batches: list[list[int]] = []
        rest: list[int] = []
        for has_images in (True, False):
            own = [i for i in drawn if bool(self.lengths[i][0]) is has_images]
            full = len(own) // size * size
            batches += self._batches(own[:full])
            rest += own[full:]
        batches = [batches[i] for i in permutation(len(batches), self.seed, epoch)]
        while len(rest) < head + tail:
            rest += batches.pop()
        first, last, mixed = rest[:head], rest[head : head + tail], rest[head + tail :]
        return [*first, *(i for batch in batches for i in batch), *mixed, *last]

    def _batches(self, samples: Sequence[int]) -> list[list[int]]:
        """Batches of similar length: each mega-batch of shuffled samples is sorted, the longest first."""
        size = self.batch_size
        mega = size * max(1, min(len(samples) // (4 * size), MEGA))
        ordered: list[int] = []
        for start in range(0, len(samples), mega):
            ordered += sorted(samples[start : start + mega], key=lambda i: self.lengths[i], reverse=True)
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]
