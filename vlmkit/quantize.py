"""The language model's linear layers in 4 bits; encoder, connector and head stay as they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlmkit.errors import MissingExtraError, unknown_name

if TYPE_CHECKING:
    from vlmkit.vlm import VLM

METHODS = ("nf4", "fp4")
# Prefixes of the assembled model: bitsandbytes compares them from the start of a module's name.
SKIP = ["encoders", "connector", "language_model.lm_head", "lm_head"]


def quantization_config(method: str) -> Any:
    """A `BitsAndBytesConfig` for `VLM.from_pretrained`, with what must not be quantized named.

    NF4 with double quantization: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314. On a CPU it saves
    memory and is slower than float32.

    Raises:
        UsageError: There is no such method.
        MissingExtraError: bitsandbytes is not installed.
    """
    if method not in METHODS:
        raise unknown_name("quantization", method, METHODS)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtraError("bitsandbytes", "quant") from None
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=SKIP,
    )


def load_quantized(path: str | Path, method: str) -> VLM:
    """A saved model with the language model's linear layers quantized."""
    from vlmkit import VLM

    return VLM.from_pretrained(path, quantization_config=quantization_config(method))


# What transformers leaves on a model that it has quantized.
MARKS = ("is_loaded_in_4bit", "is_4bit_serializable", "is_quantized", "hf_quantizer", "quantization_method")


@torch.no_grad()
def dequantize(model: torch.nn.Module) -> None:
    """Put plain float32 layers on the CPU in the place of 4-bit ones: the very numbers these compute with."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            with torch.device("meta"):
                plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            # The state names the type of the weights before; the layer computes with unrounded numbers.
            state = copy.copy(layer.weight.quant_state)
            state.dtype = torch.float32
            plain.weight = torch.nn.Parameter(dequantize_4bit(layer.weight.data, state).cpu())
            if layer.bias is not None:
                plain.bias = torch.nn.Parameter(layer.bias.float().cpu())
            model.set_submodule(name, plain)
    for module in model.modules():
        _unmark(module)
    model.to("cpu")


def _unmark(module: Any) -> None:
    for mark in MARKS:
        if mark in vars(module):
            delattr(module, mark)
    if hasattr(getattr(module, "config", None), "quantization_config"):
        del module.config.quantization_config


def parameter_size(parameter: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for: a byte of a 4-bit one holds two."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, quantization constants included."""
    total = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        total += _constants(state) if state is not None else 0
    return total


def _constants(state: Any) -> int:
    tensors = [state.absmax, state.code, state.offset]
    nested = state.state2
    tensors += [nested.absmax, nested.code] if nested is not None else []
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def count_quantized(model: VLM) -> dict[str, int]:
    """Number of 4-bit layers in each part."""
    from bitsandbytes.nn import Linear4bit

    head = model.get_output_embeddings()
    parts = {"encoder": model.encoders, "connector": model.connector, "llm": model.language_model}
    counts = {name: sum(isinstance(m, Linear4bit) for m in part.modules()) for name, part in parts.items()}
    return {**counts, "lm_head": int(isinstance(head, Linear4bit))}
