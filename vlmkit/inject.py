"""Blocks before decoder layers of a language model whose parameters and their names stay as they are.

A layer with a block gets another class, as PyTorch's `fully_shard` does it: its parent is the layer's class,
under the same name, and only what is called first differs. So the block runs outside of the layer's gradient
checkpointing, and reads what is seen once, in the forward pass. A layer knows its number alone; the block is
that of the connector which this pass is made with.

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
from vlmkit_connectors import LayerInjection

# Of the forward pass that is under way in this thread; a language model that runs on its own sees nothing.
_SEEN: ContextVar[tuple[LayerInjection, Sight] | None] = ContextVar("vlmkit_seen", default=None)


@contextmanager
def seeing(injection: LayerInjection, sight: Sight) -> Iterator[None]:
    """Inside, the blocks run in the language model and see this."""
    token = _SEEN.set((injection, sight))
    try:
        yield
    finally:
        _SEEN.reset(token)


def inject(language_model: nn.Module, injection: LayerInjection) -> None:
    """Let the blocks run before their decoder layers.

    Raises:
        UsageError: The decoder layers of this language model are not found.
    """
    layers = decoder_layers(language_model)
    for number in injection.each():
        layer = layers[number]
        layer.__dict__["_layer_number"] = number
        if not isinstance(layer, _Seeing):
            layer.__class__ = _seeing_class(type(layer))


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

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: a pickle names the layer's own.
        return _blank, (type(self).__mro__[2],), self.__dict__


# One class for all layers of a kind: what picks layers by their class (FSDP) must find them all.
_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _seeing_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _CLASSES:
        _CLASSES[cls] = type(cls.__name__, (_Seeing, cls), {"__module__": cls.__module__})
    return _CLASSES[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    made = _seeing_class(cls)
    return made.__new__(made)


def _seen(layer: Any, hidden_BLD: Tensor) -> Tensor:
    """Hidden states after the layer's block."""
    given = _SEEN.get()
    if given is None:
        return hidden_BLD
    injection, sight = given
    if hidden_BLD.shape[:-1] != sight.seen_BLM.shape[:-1]:
        raise UsageError(
            f"layers of {type(layer).__name__} take hidden states of shape {tuple(hidden_BLD.shape)}, and "
            f"(rows, tokens, width) is needed, with {tuple(sight.seen_BLM.shape[:-1])} rows and tokens; use "
            "another language model, or a connector whose tokens enter the sequence (mlp)"
        )
    number = layer.__dict__["_layer_number"]
    block, seen = injection.each()[number], (hidden_BLD, sight.memory[number], sight.seen_BLM)
    if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
        out: Tensor = checkpoint(block, *seen, use_reentrant=False)
    else:
        out = block(*seen)
    return out.to(hidden_BLD)
