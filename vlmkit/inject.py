"""Blocks before decoder layers of a language model whose parameters and their names stay as they are.

A layer with a block gets a class of its own, as PyTorch's `fully_shard` does it: its parent is the layer's
class, under the same name, and only what is called first differs. So the block runs outside of the layer's
gradient checkpointing, and reads what is seen once, in the forward pass.

Shapes: B rows, L tokens, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmkit.errors import UsageError
from vlmkit.sight import Sight
from vlmkit_connectors import InjectedBlock, LayerInjection

# Of the forward pass that is under way in this thread; a language model that runs on its own sees nothing.
_SIGHT: ContextVar[Sight | None] = ContextVar("vlmkit_sight", default=None)


@contextmanager
def seeing(sight: Sight | None) -> Iterator[None]:
    """Inside, the blocks of the language model that runs see this."""
    token = _SIGHT.set(sight)
    try:
        yield
    finally:
        _SIGHT.reset(token)


def inject(language_model: nn.Module, injection: LayerInjection) -> None:
    """Let the blocks run before their decoder layers.

    Raises:
        UsageError: The decoder layers of this language model are not found.
    """
    layers = decoder_layers(language_model)
    for number, block in injection.each().items():
        layer = layers[number]
        cls = type(layer)
        # In a tuple: as a submodule the block would become a part of the language model.
        layer.__dict__["_block_before"] = (number, block)
        layer.__class__ = type(cls.__name__, (_Seeing, cls), {"__module__": cls.__module__})


def decoder_layers(language_model: Any) -> nn.ModuleList:
    """The list of a language model's decoder layers.

    Raises:
        UsageError: There is none of `config.num_hidden_layers` modules.
    """
    count = language_model.config.num_hidden_layers
    for module in language_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UsageError(
        f"{type(language_model).__name__} has no list of {count} decoder layers, so nothing can run before "
        "them; use another language model, or a connector whose tokens enter the sequence (mlp)"
    )


class _Seeing:
    """Mixed into the class of a decoder layer."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            return super().__call__(_seen(self, args[0]), *args[1:], **kwargs)  # type: ignore[misc]
        kwargs["hidden_states"] = _seen(self, kwargs["hidden_states"])
        return super().__call__(**kwargs)  # type: ignore[misc]


def _seen(layer: Any, hidden_BLD: Tensor) -> Tensor:
    """Hidden states after the layer's block."""
    sight = _SIGHT.get()
    if sight is None:
        return hidden_BLD
    block: InjectedBlock
    number, block = layer.__dict__["_block_before"]
    given = hidden_BLD, sight.memory[number], sight.seen_BLM
    if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
        out: Tensor = checkpoint(block, *given, use_reentrant=False)
    else:
        out = block(*given)
    return out.to(hidden_BLD)
