"""LoRA over a 4-bit language model: what is learnt goes into the numbers that the 4 bits stand for.

Dettmers et al. 2023, https://arxiv.org/abs/2305.14314. Merging into a 4-bit layer rounds the sum again and
loses much of what was learnt; merging into the weights before quantization makes a model that nobody trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vlmkit.errors import VlmkitError
from vlmkit.quantize import dequantize

TOLERANCE = 1e-3
# A bfloat16 has 8 bits, and the trained model computes in it on a GPU.
BF16_TOLERANCE = 5e-2


def is_four_bit(model: torch.nn.Module) -> bool:
    """Whether a language model has 4-bit layers, under adapters or not."""
    return any(type(p).__name__ == "Params4bit" for p in model.parameters())


def merge_four_bits(adapted: Any) -> PreTrainedModel:
    """A plain float32 model on the CPU that computes what a 4-bit model with adapters computes.

    Args:
        adapted: A `PeftModel` over 4-bit layers; it is taken apart.

    Raises:
        VlmkitError: The logits of the result are others.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    before = _probe(adapted)
    # On a GPU the 4-bit layers compute in bfloat16 (see `quantization_config`).
    tolerance = TOLERANCE if before.device.type == "cpu" else BF16_TOLERANCE
    learnt = {name: t.cpu() for name, t in get_peft_model_state_dict(adapted).items()}
    settings = adapted.peft_config["default"]
    base = adapted.unload()
    dequantize(base)
    plain = get_peft_model(base, settings)
    set_peft_model_state_dict(plain, learnt)
    merged: PreTrainedModel = plain.merge_and_unload()
    _compare(before.cpu(), _probe(merged), tolerance)
    return merged


def evaluate_exactly(model: torch.nn.Module) -> None:
    """Evaluation mode for all but 4-bit layers, whose scales bitsandbytes rounds in it on some processors."""
    model.eval()
    for module in model.modules():
        module.training = type(module).__name__ == "Linear4bit"


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """Logits of a short row of tokens."""
    training = model.training
    evaluate_exactly(model)
    ids = torch.arange(8, device=next(model.parameters()).device)[None]
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    return logits


def _compare(wanted: Tensor, found: Tensor, tolerance: float) -> None:
    difference = float((wanted - found).abs().max())
    allowed = tolerance * max(1.0, float(wanted.abs().max()))
    if not difference <= allowed:
        raise VlmkitError(
            f"merging the adapters changed logits by {difference:.2g}, at most {allowed:.2g} is possible; "
            "the run's checkpoints hold the adapters, report this as a bug"
        )
