"""Any sentence-transformers checkpoint of one transformer, read by transformers alone: texts for an index.

Shapes: N texts, L tokens, E width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlmkit.encoders.hub import load_checkpoint, load_pretrained, read_config
from vlmkit.encoders.sentence_files import read_sentences
from vlmkit.encoders.sentence_parts import pool
from vlmkit.encoders.text import TOWER_KEYS, tensors_hash, text_hash
from vlmkit.errors import VlmkitError

logger = logging.getLogger(__name__)

CHUNK = 32


class TextEncoder:
    """Embeds captions, passages and queries; an index's `TextEmbedder` by shape.

    Args:
        reference: A folder, a hub id, or `pypi:NAME`.
        name: Of the vector in an index.

    Attributes:
        name: As above.

    Raises:
        VlmkitError: It cannot be read, has modules or options that are not supported, or is no encoder alone.
    """

    def __init__(self, reference: str, name: str = "text") -> None:
        from transformers import AutoModel, AutoTokenizer

        self.name = name
        config = read_config(reference)
        if getattr(config, "is_encoder_decoder", False):
            raise VlmkitError(f"text encoder {reference!r} is an encoder with a decoder; give one without")
        self._rule = read_sentences(reference)
        # The pooler of a BERT is not looked at, and checkpoints come with and without it.
        model = load_checkpoint(AutoModel, reference, optional=r"pooler\.|position_ids$")
        self._model: nn.Module = model.eval().requires_grad_(False)
        self._tokenizer = load_pretrained(AutoTokenizer, reference)
        limits = [self._rule.limit or self._tokenizer.model_max_length]
        self._limit = int(min([*limits, getattr(config, "max_position_embeddings", None) or 10**9]))
        self._config = config
        self._said = False

    def to(self, device: str | torch.device) -> Self:
        """Move what computes to a device."""
        self._model.to(device)
        for layer in self._rule.dense:
            layer.to(device)
        return self

    @property
    def embed_dim(self) -> int:
        """Width of the vectors."""
        if self._rule.dense:
            return int(self._rule.dense[-1].linear.out_features)
        return int(self._config.hidden_size) * len(self._rule.poolings)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (32 hex digits) of tensors, architecture, vocabulary, pooling, limits and prompts."""
        stated = {key: getattr(self._config, key, None) for key in TOWER_KEYS}
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        described = json.dumps([stated, self._rule.stated(), self._limit, vocabulary])
        return text_hash(described + "".join(map(tensors_hash, [self._model, *self._rule.dense])))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length vectors of shape (N, E) of what is searched: captions, passages.

        A text with more tokens than the model takes is cut; the first one with a warning.
        """
        return self._embed([self._rule.document + text for text in texts])

    def embed_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length vectors of shape (N, E) of what is searched for; another prompt, where there is one."""
        return self._embed([self._rule.query + text for text in texts])

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        rows = [self._chunk(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
        found_NE = torch.cat(rows) if rows else torch.empty(0, self.embed_dim)
        unit_NE: NDArray[np.float32] = nn.functional.normalize(found_NE.float(), dim=-1).numpy()
        return unit_NE

    def _chunk(self, texts: list[str]) -> Tensor:
        given = [text.lower() for text in texts] if self._rule.lower else texts
        # Not every tokenizer reports what it cut off.
        cut = sum(len(ids) > self._limit for ids in self._tokenizer(given, verbose=False)["input_ids"])
        if cut and not self._said:
            # An index embeds texts one by one: pages of a book would say it hundreds of times.
            self._said = True
            logger.warning("a text has over %d tokens and was cut; not said again of others", self._limit)
        tokens = self._tokenizer(
            given, padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        ).to(next(self._model.parameters()).device)
        hidden_NLE = self._model(**tokens).last_hidden_state
        vectors_NE = pool(self._rule.poolings, hidden_NLE, tokens["attention_mask"])
        for layer in self._rule.dense:
            vectors_NE = layer(vectors_NE)
        return vectors_NE.cpu()
