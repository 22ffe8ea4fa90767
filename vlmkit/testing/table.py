"""The checks that an encoder has to pass, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlmkit.testing import (
    checks_batch,
    checks_gradients,
    checks_host,
    checks_pixels,
    checks_state,
    checks_tokens,
    checks_vectors,
)
from vlmkit.testing.report import Outcome
from vlmkit.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        run: What it does; the first line of its docstring says what it asks.
        needs: Checks without which its figures would say nothing.
    """

    run: Callable[[Subject], Outcome]
    needs: tuple[str, ...] = ("forward", "repeat")

    @property
    def about(self) -> str:
        """What it asks, in a sentence."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


SEEN, BATCHED = ("forward",), ("forward", "repeat", "batch")
CHECKS: dict[str, Check] = {
    "views": Check(checks_pixels.views, ()),
    "pixels": Check(checks_pixels.pixels, ()),
    "processor": Check(checks_pixels.processor, ()),
    "modes": Check(checks_pixels.modes, ()),
    "forward": Check(checks_tokens.forward, ()),
    "repeat": Check(checks_batch.repeat, SEEN),
    "grids": Check(checks_tokens.grids, SEEN),
    "order": Check(checks_tokens.order),
    "layer": Check(checks_tokens.layer),
    "batch": Check(checks_batch.batch),
    "packing": Check(checks_batch.packing, BATCHED),
    "first view": Check(checks_batch.first_view, BATCHED),
    "vector": Check(checks_vectors.vector),
    "reference": Check(checks_vectors.reference),
    "text": Check(checks_vectors.text, ()),
    "dtype": Check(checks_state.dtype, SEEN),
    "round trip": Check(checks_state.round_trip),
    "fingerprint": Check(checks_state.fingerprint, SEEN),
    "frozen": Check(checks_gradients.frozen, SEEN),
    "trainable": Check(checks_gradients.trainable),
    "global state": Check(checks_host.global_state),
    "offline": Check(checks_host.offline, SEEN),
}
