"""Attention probabilities, read where every tower computes attention: `scaled_dot_product_attention`.

Queries, keys and mask are taken as they enter that one function, after rotary positions, query-key norms and
whatever else a tower does; the module runs as always, on the same kernel. So a tower needs no code here, and
no number changes.

Shapes: I views or rows, H heads, Q queries, K keys, A width of a head.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# The function is built in and has no signature of its own.
_SIGNATURE = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in (
            ("query", None), ("key", None), ("value", None), ("attn_mask", None), ("dropout_p", 0.0),
            ("is_causal", False), ("scale", None), ("enable_gqa", False),
        )
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Attended:
    """One call of the attention function, with what it gave.

    Attributes:
        query_IHQA, key_IHKA, value_IHKA: As they entered; keys and values may have fewer heads.
        mask: Boolean (True: may look) or to be added to the scores; None for none.
        causal: A query sees no key after its own place.
        scale: Factor on the products; None for 1 / sqrt(A).
        output_IHQA: The result.
    """

    query_IHQA: Tensor
    key_IHKA: Tensor
    value_IHKA: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None
    output_IHQA: Tensor

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.query_IHQA.shape[1]

    @property
    def tokens(self) -> tuple[int, int]:
        """Number of queries, number of keys."""
        return self.query_IHQA.shape[2], self.key_IHKA.shape[2]

    def probabilities(self, queries: slice = slice(None)) -> Tensor:
        """Softmax of the scores in float32, (I, H, Q, K), for all queries or some: each row sums to 1."""
        share = self.heads // self.key_IHKA.shape[1]
        keys_IHKA = self.key_IHKA.float().repeat_interleave(share, dim=1)
        scale = 1 / math.sqrt(keys_IHKA.shape[-1]) if self.scale is None else self.scale
        scores_IHQK = self.query_IHQA[:, :, queries].float() @ keys_IHKA.mT * scale
        for mask in self._masks():
            rows = mask if mask.shape[-2] == 1 else mask[..., queries, :]
            if rows.dtype == torch.bool:
                scores_IHQK = scores_IHQK.masked_fill(~rows, -math.inf)
            else:
                scores_IHQK = scores_IHQK + rows
        return scores_IHQK.softmax(dim=-1)

    def _masks(self) -> Iterator[Tensor]:
        if self.mask is not None:
            yield self.mask
        if self.causal:
            yield torch.ones(self.tokens, dtype=torch.bool, device=self.query_IHQA.device).tril()


class _Listener(TorchFunctionMode):
    """Notes the calls of the attention function while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = False
        self.calls: list[Attended] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.open and func is F.scaled_dot_product_attention:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            q, k, v, mask, _, causal, scale, _ = given.args
            self.calls.append(Attended(q, k, v, mask, causal, scale, result))
        return result


@contextmanager
def attention_of(module: nn.Module) -> Iterator[list[Attended]]:
    """Collect the attention that a module computes, in order; what other modules compute is left out.

    The module should be in evaluation mode: dropout is not part of the probabilities. Attention that another
    function computes (eager code, a flash kernel of its own) is not seen, and the list stays empty.
    """
    listener = _Listener()

    def enter(*_: Any) -> None:
        listener.open = True

    def leave(*_: Any) -> None:
        listener.open = False

    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        with listener:
            yield listener.calls
    finally:
        for hook in hooks:
            hook.remove()
