"""LoRA over a 4-bit language model: what is learnt goes into the numbers that the 4 bits stand for.

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314. Merging into a 4-bit layer rounds the sum again and
loses much of what was learnt; merging into the weights before quantization makes a model that nobody trained.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from vlmkit.quantize import dequantize
from vlmkit.train.logits import merge_logits, require_same_logits


def is_four_bit(model: torch.nn.Module) -> bool:
    """Whether a language model has 4-bit layers, under adapters or not."""
    return any(type(p).__name__ == "Params4bit" for p in model.parameters())


def merge_four_bits(adapted: Any) -> tuple[PreTrainedModel, float]:
    """A plain float32 model on the CPU that computes what a 4-bit model with adapters computes.

    Args:
        adapted: A `PeftModel` over 4-bit layers; it is taken apart.

    Returns:
        The model, and by how much its logits differ.

    Raises:
        VlmkitError: The logits of the result are others.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    before = merge_logits(adapted)
    learnt = {name: t.cpu() for name, t in get_peft_model_state_dict(adapted).items()}
    settings = adapted.peft_config["default"]
    base = adapted.unload()
    dequantize(base)
    plain = get_peft_model(base, settings)
    set_peft_model_state_dict(plain, learnt)
    merged: PreTrainedModel = plain.merge_and_unload()
    # On a GPU the 4-bit layers compute in bfloat16 (see `quantization_config`).
    coarse = before.device.type != "cpu"
    return merged, require_same_logits(before.cpu(), merge_logits(merged), coarse)
