"""The end of adapters: they go into the weights under them, and what the model says is compared."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from vlmkit.train.logits import merge_logits, require_same_logits
from vlmkit.train.qlora import is_four_bit, merge_four_bits


def has_adapters(language_model: nn.Module) -> bool:
    """Whether a language model is wrapped in adapters."""
    return hasattr(language_model, "merge_and_unload")


def merge_adapters(adapted: Any, check: bool) -> tuple[PreTrainedModel, float | None]:
    """The language model with its adapters in its weights; never in 4-bit ones, see `merge_four_bits`.

    Args:
        adapted: A `PeftModel`; it is taken apart.
        check: Compare logits before and after; not possible on meta tensors.

    Returns:
        The model, and by how much its logits differ.

    Raises:
        VlmkitError: They differ by more than rounding does.
    """
    if is_four_bit(adapted):
        return merge_four_bits(adapted)
    before = merge_logits(adapted) if check else None
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged, None if before is None else require_same_logits(before, merge_logits(merged))
