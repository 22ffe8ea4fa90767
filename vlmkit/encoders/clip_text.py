"""CLIP's text half as a frozen text tower (Radford et al. 2021, https://arxiv.org/abs/2103.00020).

Shapes: N texts, E retrieval width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from vlmkit.encoders.classify import Scoring
from vlmkit.encoders.hub import load_checkpoint, load_pretrained, read_config
from vlmkit.encoders.text import FrozenTower, take_scalar


class TextHalf(CLIPTextModelWithProjection):  # type: ignore[misc]
    """The text half of a CLIP checkpoint and its `logit_scale`; the vision half is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^vision_model\.", r"^visual_projection\.", r"\.position_ids$",
    ]  # fmt: skip

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.empty(()))


class CLIPTextTower(FrozenTower):
    """Projected state of the end-of-text token, as `CLIPModel.get_text_features` gives it.

    A text longer than the model's positions (77 tokens for the published ones) is cut, with a warning.

    Args:
        reference: Weights reference of a whole CLIP checkpoint with its tokenizer.
    """

    def __init__(self, reference: str) -> None:
        whole = read_config(reference)
        config = whole.text_config
        # The number that counts is the whole model's; the halves' own is often a default that was never used.
        config.projection_dim = whole.projection_dim
        model = load_checkpoint(TextHalf, reference, config=config)
        self._scoring = Scoring(("clip",), "softmax", float(take_scalar(model, "logit_scale").exp()))
        super().__init__(load_pretrained(AutoTokenizer, reference), model, config.max_position_embeddings)

    @property
    def embed_dim(self) -> int:
        """See `TextTower.embed_dim`."""
        return int(self._model.config.projection_dim)

    @property
    def scoring(self) -> Scoring:
        """See `TextTower.scoring`."""
        return self._scoring

    def _embed(self, texts: list[str]) -> Tensor:
        vectors_NE: Tensor = self._model(**self._tokens(texts)).text_embeds
        return vectors_NE
