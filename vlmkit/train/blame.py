"""Which samples of a step have a loss or a gradient that is not finite; asked only when it has happened.

Shapes: B rows, L tokens, P numbers of a row's pixels, K most images of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vlmkit.data.batch import Batch, listed_images, numbers_of
from vlmkit.encoders.spec import VisionSpec
from vlmkit.train.devices import same_randomness
from vlmkit.train.distribute import any_process, is_sharded, most_of_all, of_every_process, reshard

# Ways to ask, the most exact one first, with what an answer says.
ALONE = "loss"
TOGETHER = "micro_batch"
GRADIENT = "gradient"
ANY = "step"
SAYS = {
    ALONE: "each has such a loss on its own",
    TOGETHER: "none has such a loss on its own, their micro-batch has",
    GRADIENT: "all losses are finite, each of these has such a gradient on its own",
    ANY: "none has such a loss or gradient on its own, these are all of the step",
}


@dataclass(frozen=True)
class Blame:
    """The samples that are to blame, of all processes.

    Attributes:
        kind: A key of `SAYS`.
        ids: The samples.
    """

    kind: str
    ids: tuple[str, ...]

    @property
    def words(self) -> str:
        """The samples and what is known about them."""
        return f"samples {', '.join(dict.fromkeys(self.ids))} ({SAYS[self.kind]})"


def find_blame(wrapped: Any, batches: Sequence[Batch], accelerator: Accelerator) -> Blame:
    """Run rows on their own; nothing is changed by it, neither numbers of the model nor random states.

    Every process calls it, and makes as many passes as the one with the most rows.

    Args:
        wrapped: The stage's module as accelerate has it; its gradients are dropped.
        batches: The micro-batches of the step, of this process.
        accelerator: The processes.
    """
    inner = accelerator.unwrap_model(wrapped)
    rows = list(chain.from_iterable(rows_of(batch, inner.vlm.specs) for batch in batches))
    rounds = most_of_all(len(rows), accelerator)
    filled = [rows[i % len(rows)] for i in range(rounds)]
    asked: list[tuple[str, Sequence[Batch], Callable[[Any, Batch, Accelerator], bool]]] = [
        (ALONE, filled, _bad_loss),
        (TOGETHER, batches, _bad_loss),
    ]
    # Of shares no process has a gradient of its own.
    asked += [] if is_sharded(accelerator) else [(GRADIENT, filled, _bad_gradient)]
    inner.zero_grad(set_to_none=True)
    wrapped.eval()
    with same_randomness(accelerator.device):
        kind, bad = next(_answers(asked, wrapped, accelerator), (ANY, batches))
    wrapped.train()
    reshard(wrapped)
    own = [name for batch in bad for name in batch.sample_ids]
    return Blame(kind, tuple(dict.fromkeys(chain.from_iterable(of_every_process(own, accelerator)))))


def _answers(
    asked: Sequence[tuple[str, Sequence[Batch], Callable[[Any, Batch, Accelerator], bool]]],
    wrapped: Any,
    accelerator: Accelerator,
) -> Iterator[tuple[str, Sequence[Batch]]]:
    """The ways of asking that have found something in any process, with what this process has of it."""
    for kind, batches, is_bad in asked:
        bad = [batch for batch in batches if is_bad(wrapped, batch, accelerator)]
        if any_process(any(batch.sample_ids for batch in bad), accelerator):
            yield kind, bad


@torch.no_grad()
def _bad_loss(wrapped: Any, batch: Batch, accelerator: Accelerator) -> bool:
    with accelerator.autocast():
        losses = wrapped(batch.to(accelerator.device))
    return not all(bool(total.isfinite()) for total, _ in losses.values())


def _bad_gradient(wrapped: Any, batch: Batch, accelerator: Accelerator) -> bool:
    with accelerator.no_sync(wrapped):
        with accelerator.autocast():
            losses = wrapped(batch.to(accelerator.device))
        accelerator.backward(torch.stack([total for total, _ in losses.values()]).sum())
    grads = [p.grad for p in wrapped.parameters() if p.grad is not None]
    bad = not all(bool(grad.isfinite().all()) for grad in grads)
    wrapped.zero_grad(set_to_none=True)
    return bad


def rows_of(batch: Batch, specs: Sequence[VisionSpec]) -> Iterator[Batch]:
    """Each row of a batch as a batch of its own, with no pixels but its own.

    Args:
        batch: The rows; one that holds several samples stays together.
        specs: Of the encoders, which say how many numbers an image is.
    """
    counts = _samples_of_rows(batch)
    stops = list(accumulate(counts))
    images = [[] for _ in counts] if batch.image_sizes is None else listed_images(batch.image_sizes)
    for i, (start, stop, own) in enumerate(zip([0, *stops], stops, images)):
        cut: dict[str, Any] = {"skipped": ()}
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                cut[field.name] = value[i : i + 1]
            elif isinstance(value, tuple) and field.name not in cut:
                cut[field.name] = value[start:stop]
        if own and batch.pixel_values is not None:
            numbers = sum(numbers_of(spec, image) for spec in specs for image in own)
            cut["pixel_values"] = batch.pixel_values[i : i + 1, :numbers]
        else:
            cut |= {"pixel_values": None, "image_sizes": None}
        yield replace(batch, **cut)


def _samples_of_rows(batch: Batch) -> list[int]:
    """How many of `sample_ids` each row holds."""
    if batch.segments_BL is None:
        return [1] * len(batch.captions)
    return [int(count) for count in batch.segments_BL.amax(1) + 1]
