"""The language model's head at supervised positions only, a chunk of them at a time.

A vocabulary of 150,000 words makes the logits of all positions the largest tensor of a step; images and
questions are most positions, and no label asks about them.

Shapes: B rows, L tokens, S supervised positions, C of them in a chunk, D width of the language model,
W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlmkit.objectives import IGNORE
from vlmkit.train.devices import same_randomness
from vlmkit.train.logits import evaluate_exactly

CHUNK = 1024
# Of the made-up states: far outside of what a cap lets through as it is.
LOUD = 64.0


class SupervisedHead:
    """Next-token loss with logits where there is a label, and nowhere else.

    The head is asked through the language model's own forward pass: what a family does to logits after it
    (Gemma 2 caps them, Cohere scales them) is done here, too. Where a family does nothing, the logits are
    computed a chunk at a time and again in the backward pass, so that those of one chunk are held. Which it
    is, is asked once, before the first batch, and does not depend on it: a resumed run decides alike.

    Args:
        head: The language model's output layer.
        chunk: Positions C of a chunk; `CHUNK` where absent.

    Attributes:
        losses_S: Weighted losses of the last batch, row after row, without gradient; empty before the first.
    """

    def __init__(self, head: nn.Module, chunk: int | None = None) -> None:
        self.head = head
        self.chunk = chunk or CHUNK
        self.losses_S = torch.empty(0)
        self._plain: bool | None = None

    def loss(self, decode: Callable[[], Any], labels_BL: Tensor, weights_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of weighted losses, and sum of weights; see `token_loss`.

        Args:
            decode: Runs the language model; its output has logits.
            labels_BL: Unshifted labels, -100 where nothing is supervised.
            weights_BL: Weight of each label.
        """
        if self._plain is None:
            self._plain = self._does_nothing_after(decode)
        places_BL = F.pad(labels_BL[:, 1:] != IGNORE, (0, 1))
        targets_S = labels_BL[:, 1:][places_BL[:, :-1]]
        weights_S = weights_BL[:, 1:][places_BL[:, :-1]].float()
        chunked = self._plain and len(targets_S) > self.chunk
        with _gathered(self.head, places_BL, 1 if chunked else None) as kept:
            logits_SW = decode().logits[0]
        (hidden_SD,) = kept
        if not chunked:
            total, self.losses_S = _weighted(logits_SW, targets_S, weights_S)
            return total, weights_S.sum()
        # The one row of logits that the model made keeps its graph whole, at no weight.
        total = 0.0 * logits_SW.sum()
        parts = [torch.split(whole, self.chunk) for whole in (hidden_SD, targets_S, weights_S)]
        losses = []
        for part in zip(*parts, strict=True):
            loss, losses_C = checkpoint(self._chunk_loss, *part, use_reentrant=False)
            total = total + loss
            losses.append(losses_C)
        self.losses_S = torch.cat(losses)
        return total, weights_S.sum()

    def _chunk_loss(self, hidden_CD: Tensor, targets_C: Tensor, weights_C: Tensor) -> tuple[Tensor, Tensor]:
        return _weighted(self.head(hidden_CD), targets_C, weights_C)

    @torch.no_grad()
    def _does_nothing_after(self, decode: Callable[[], Any]) -> bool:
        """Whether the model's logits are its head's, bit for bit, on one row of made-up hidden states.

        One more pass, in which no dropout of the head is drawn; what else draws leaves no trace.
        """
        if any(hasattr(p, "ds_tensor") for p in self.head.parameters()):
            # DeepSpeed's shares: autocast would keep the weights it rounds here for the pass with gradient.
            return False
        device = next(self.head.parameters()).device
        with same_randomness(device), _quiet(self.head), _made_up(self.head) as made:
            logits_1W = decode().logits[0]
        if any(type(p).__name__ == "DTensor" for p in self.head.parameters()):
            return False
        with _quiet(self.head):
            return bool(torch.equal(self.head(made[0])[0].to(logits_1W), logits_1W))


def _weighted(logits_SW: Tensor, targets_S: Tensor, weights_S: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of weighted cross-entropies in float32, and each of them without gradient."""
    losses_S = F.cross_entropy(logits_SW.float(), targets_S, reduction="none") * weights_S
    return losses_S.sum(), losses_S.detach()


@contextmanager
def _quiet(head: nn.Module) -> Iterator[None]:
    """Inside, the head and the adapters on it are evaluated; each of its modules is then as it was."""
    training = [(module, module.training) for module in head.modules()]
    evaluate_exactly(head)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


@contextmanager
def _made_up(head: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the head gets one loud made-up hidden state in place of what the model gives it.

    Yields:
        A list that holds the state (1, 1, D), once the head was called.
    """
    made: list[Tensor] = []

    def replace(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        own = torch.Generator().manual_seed(0)
        made.append(LOUD * torch.randn(1, 1, args[0].shape[-1], generator=own).to(args[0]))
        return (made[0],)

    handle = head.register_forward_pre_hook(replace)
    try:
        yield made
    finally:
        handle.remove()


@contextmanager
def _gathered(head: nn.Module, places_BL: Tensor, most: int | None) -> Iterator[list[Tensor]]:
    """Inside, the head gets one row of the hidden states at these places, or of the first `most` of them.

    Yields:
        A list that holds all hidden states (S, D) at the places, once the head was called.
    """
    kept: list[Tensor] = []

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        kept.append(args[0][places_BL])
        return (kept[0][None, :most],)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield kept
    finally:
        handle.remove()
