"""The text halves of SigLIP and SigLIP 2 as frozen text towers.

Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786).

Shapes: N texts, E retrieval width.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Siglip2TextModel, SiglipTextModel

from vlmkit.encoders.classify import Scoring
from vlmkit.encoders.hub import load_checkpoint, load_pretrained, read_config
from vlmkit.encoders.text import FrozenTower, take_scalar

FAMILIES = ("siglip", "siglip2_naflex")
NOT_TEXT = [r"^vision_model\.", r"\.position_ids$"]


class TextHalf(SiglipTextModel):  # type: ignore[misc]
    """The text half of a SigLIP checkpoint, or of a SigLIP 2 one at fixed resolution, and its two scalars."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_TEXT

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.empty(1)) for _ in range(2))


class NaFlexTextHalf(Siglip2TextModel):  # type: ignore[misc]
    """The text half of a SigLIP 2 NaFlex checkpoint, and its two scalars."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_TEXT

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.logit_scale, self.logit_bias = (nn.Parameter(torch.empty(1)) for _ in range(2))


class SigLIPTextTower(FrozenTower):
    """Projected state of the last position, as `SiglipModel.get_text_features` gives it.

    Texts are given as in training: in lower case, padded on the right to all positions (64 for most of the
    published checkpoints), and the padding is attended to. SigLIP's own tokenizer lower-cases, SigLIP 2's
    only in some versions of transformers. A longer text is cut, with a warning.

    Args:
        reference: Weights reference of a whole checkpoint with its tokenizer.
    """

    def __init__(self, reference: str) -> None:
        whole = read_config(reference)
        half = NaFlexTextHalf if whole.model_type == "siglip2" else TextHalf
        model = load_checkpoint(half, reference, config=whole.text_config)
        scale, bias = (float(take_scalar(model, f"logit_{name}")) for name in ("scale", "bias"))
        self._scoring = Scoring(FAMILIES, "sigmoid", math.exp(scale), bias)
        tokenizer = load_pretrained(AutoTokenizer, reference)
        tokenizer.padding_side = "right"
        super().__init__(tokenizer, model, whole.text_config.max_position_embeddings)

    @property
    def embed_dim(self) -> int:
        """See `TextTower.embed_dim`."""
        return int(self._model.config.projection_size)

    @property
    def scoring(self) -> Scoring:
        """See `TextTower.scoring`."""
        return self._scoring

    def _tokens(self, texts: list[str], padding: bool | str = "max_length") -> Any:
        """Model inputs (N, positions) without an attention mask."""
        tokens = super()._tokens([text.lower() for text in texts], padding)
        return {"input_ids": tokens["input_ids"]}

    def _embed(self, texts: list[str]) -> Tensor:
        vectors_NE: Tensor = self._model(**self._tokens(texts)).pooler_output
        return vectors_NE
