"""Parts of a sentence-transformers checkpoint behind its transformer: pooling, dense layers, normalisation.

Reimers and Gurevych, "Sentence-BERT", 2019 (https://arxiv.org/abs/1908.10084). A part that is not in these
tables is refused: leaving one out would give other vectors without a word.

Shapes: N texts, L tokens, E width of the tokens' states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.errors import VlmkitError, unknown_name

Pooling = Callable[[Tensor, Tensor], Tensor]


def _first(hidden_NLE: Tensor, mask_NL: Tensor) -> Tensor:
    return hidden_NLE[torch.arange(len(hidden_NLE)), mask_NL.int().argmax(1)]


def _last(hidden_NLE: Tensor, mask_NL: Tensor) -> Tensor:
    last_N = mask_NL.shape[1] - 1 - mask_NL.flip(1).int().argmax(1)
    return hidden_NLE[torch.arange(len(hidden_NLE)), last_N]


def _max(hidden_NLE: Tensor, mask_NL: Tensor) -> Tensor:
    return hidden_NLE.masked_fill(mask_NL.unsqueeze(-1) == 0, float("-inf")).amax(1)


def _weighted(hidden_NLE: Tensor, weights_NL: Tensor, power: float = 1.0) -> Tensor:
    weights_NL1 = weights_NL.unsqueeze(-1).to(hidden_NLE.dtype)
    return (hidden_NLE * weights_NL1).sum(1) / weights_NL1.sum(1).clamp(min=1e-9) ** power


def _by_position(hidden_NLE: Tensor, mask_NL: Tensor) -> Tensor:
    return _weighted(hidden_NLE, mask_NL * mask_NL.cumsum(1))


POOLINGS: dict[str, Pooling] = {
    "cls": _first,
    "max": _max,
    "mean": _weighted,
    "mean_sqrt_len_tokens": lambda hidden_NLE, mask_NL: _weighted(hidden_NLE, mask_NL, 0.5),
    "weightedmean": _by_position,
    "lasttoken": _last,
}
# Before sentence-transformers 5.5, a configuration had a switch for each.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "torch.nn.modules.activation.Tanh": nn.Tanh,
    "torch.nn.modules.activation.GELU": nn.GELU,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.linear.Identity": nn.Identity,
}


def poolings_of(config: Mapping[str, Any]) -> list[str]:
    """Names of the poolings that a configuration asks for; their results are put side by side.

    Raises:
        VlmkitError: One that is not known, or a prompt that is to be left out of the pooling.
    """
    stated = config.get("pooling_mode")
    if stated is None:
        stated = [mode for switch, mode in _SWITCHES.items() if config.get(switch)] or ["mean"]
    names = [stated] if isinstance(stated, str) else list(stated)
    for name in names:
        if name not in POOLINGS:
            raise unknown_name("pooling", name, POOLINGS)
    if not config.get("include_prompt", True):
        raise VlmkitError("a pooling that leaves the prompt out (include_prompt: false) is not supported")
    return names


def pool(names: Sequence[str], hidden_NLE: Tensor, mask_NL: Tensor) -> Tensor:
    """Vectors of shape (N, E x len(names)) from the states of all tokens."""
    return torch.cat([POOLINGS[name](hidden_NLE, mask_NL) for name in names], dim=1)


class DenseLayer(nn.Module):
    """A linear layer with an activation behind the pooling.

    Args:
        config: `in_features`, `out_features`, `bias`, `activation_function`.

    Raises:
        VlmkitError: An activation or a wiring that is not known.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        rest = {k: v for k, v in config.items() if k not in ("in_features", "out_features", "bias")}
        activation = rest.pop("activation_function", "torch.nn.modules.activation.Tanh")
        wired = {rest.pop(f"module_{end}_name", "sentence_embedding") for end in ("input", "output")}
        if wired - {"sentence_embedding", None} or any(rest.values()):
            raise VlmkitError(f"a dense layer with {rest or wired} is not supported")
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation of a dense layer", activation, _ACTIVATIONS)
        bias = config.get("bias", True)
        self.linear = nn.Linear(config["in_features"], config["out_features"], bias=bias)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, vectors_NE: Tensor) -> Tensor:
        """Vectors of shape (N, out_features)."""
        found: Tensor = self.activation(self.linear(vectors_NE))
        return found
