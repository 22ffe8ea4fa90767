"""Logits before and after adapters are merged: a merge that changes what a model says is refused.

Shapes: B rows, L tokens, W words of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmkit.errors import VlmkitError

TOLERANCE = 1e-3
# Of the largest logit: float32 has 24 bits, and a sum in another order differs in the last ones.
ROUNDING = 1e-5
# Of the largest logit: a bfloat16 has 8 bits, and 4-bit layers compute in it on a GPU.
BF16_TOLERANCE = 5e-2
ROWS, LENGTH = 2, 16


def evaluate_exactly(model: torch.nn.Module) -> None:
    """Evaluation mode for all but 4-bit layers, whose scales bitsandbytes rounds in it on some processors."""
    model.eval()
    keep_four_bits(model)


def keep_four_bits(model: torch.nn.Module) -> None:
    """Let 4-bit layers be as in training, which is exact; nothing in them is drawn."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True


@torch.no_grad()
def merge_logits(language_model: Any) -> Tensor:
    """Logits (B, L, W) of a language model, with adapters or not, on two short rows of any tokens."""
    training = language_model.training
    evaluate_exactly(language_model)
    words = language_model.get_input_embeddings().weight.shape[0]
    own = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(words, (ROWS, LENGTH), generator=own)
    device = next(language_model.parameters()).device
    logits_BLW: Tensor = language_model(input_ids=ids_BL.to(device), use_cache=False).logits.float()
    language_model.train(training)
    return logits_BLW


def require_same_logits(wanted: Tensor, found: Tensor, coarse: bool = False) -> float:
    """The largest difference between logits of the same tokens, before and after.

    Args:
        wanted: Before.
        found: After.
        coarse: Whether the first were computed in bfloat16.

    Raises:
        VlmkitError: It is more than 1e-3 (or what rounding alone explains), or no number.
    """
    difference = float((wanted - found).abs().max())
    largest = float(wanted.abs().max())
    allowed = BF16_TOLERANCE * max(1.0, largest) if coarse else max(TOLERANCE, ROUNDING * largest)
    if not difference <= allowed:
        raise VlmkitError(
            f"merging the adapters changed logits by {difference:.2g}, at most {allowed:.2g} is possible; "
            "the run's checkpoints hold the adapters, report this as a bug"
        )
    return difference
