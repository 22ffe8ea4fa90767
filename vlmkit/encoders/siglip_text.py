"""The text halves of SigLIP and SigLIP 2 as frozen text towers.

Zhai et al. 2023 (https://arxiv.org/abs/2303.15343), Tschannen et al. 2025 (https://arxiv.org/abs/2502.14786).

Shapes: N texts, E retrieval width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoTokenizer, Siglip2TextModel, SiglipTextModel

from vlmkit.encoders.hub import load_checkpoint, load_pretrained, read_config
from vlmkit.encoders.text import FrozenTower

NOT_TEXT = [r"^vision_model\.", r"^logit_scale$", r"^logit_bias$", r"\.position_ids$"]


class TextHalf(SiglipTextModel):  # type: ignore[misc]
    """The text half of a SigLIP checkpoint, or of a SigLIP 2 one at fixed resolution."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_TEXT


class NaFlexTextHalf(Siglip2TextModel):  # type: ignore[misc]
    """The text half of a SigLIP 2 NaFlex checkpoint."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_TEXT


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
        tokenizer = load_pretrained(AutoTokenizer, reference)
        tokenizer.padding_side = "right"
        super().__init__(tokenizer, model, whole.text_config.max_position_embeddings)

    @property
    def embed_dim(self) -> int:
        """See `TextTower.embed_dim`."""
        return int(self._model.config.projection_size)

    def _tokens(self, texts: list[str], padding: bool | str = "max_length") -> Any:
        """Model inputs (N, positions) without an attention mask."""
        tokens = super()._tokens([text.lower() for text in texts], padding)
        return {"input_ids": tokens["input_ids"]}

    def _embed(self, texts: list[str]) -> Tensor:
        vectors_NE: Tensor = self._model(**self._tokens(texts)).pooler_output
        return vectors_NE
