"""Frozen text towers: what text is compared with in an encoder's retrieval space.

Shapes: N texts, L tokens, E retrieval width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlmkit.encoders.classify import Scoring
from vlmkit.encoders.hub import load_checkpoint, load_pretrained, read_config

logger = logging.getLogger(__name__)

CHUNK = 64
# What changes a tower's vectors besides its tensors.
TOWER_KEYS = ("model_type", "hidden_act", "layer_norm_eps", "num_attention_heads")


class TextTower(Protocol):
    """Embeds texts into a retrieval space; never trained, never stored with a model."""

    @property
    def fingerprint(self) -> str:
        """Hash of the tower: tensors, architecture and vocabulary."""
        ...

    @property
    def embed_dim(self) -> int:
        """Width of the space."""
        ...

    @property
    def scoring(self) -> Scoring | None:
        """How the checkpoint turns cosines into scores; None where it states nothing about that."""
        ...

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of shape (N, E), on the CPU; not necessarily normalised."""
        ...


def load_text_tower(reference: str) -> TextTower:
    """Load a tower by reference: CLIP's or SigLIP's text half, or a sentence encoder with mean pooling.

    Raises:
        VlmkitError: The reference cannot be resolved or read.
    """
    model_type = read_config(reference).model_type
    if model_type == "clip":
        from vlmkit.encoders.clip_text import CLIPTextTower

        return CLIPTextTower(reference)
    if model_type in ("siglip", "siglip2"):
        from vlmkit.encoders.siglip_text import SigLIPTextTower

        return SigLIPTextTower(reference)
    return SentenceTower(reference)


class FrozenTower(ABC):
    """A `TextTower` over a `transformers` model and its tokenizer.

    Each text is embedded once: vectors are kept by text, so a training stage over a few hundred captions runs
    the tower a few hundred times.

    Args:
        tokenizer: The checkpoint's tokenizer.
        model: The checkpoint's model.
        limit: Tokens that the model takes; a longer text is cut, with a warning.
    """

    def __init__(self, tokenizer: Any, model: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False)
        self._limit = limit
        self._known: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """See `TextTower.embed_dim`."""

    @property
    def scoring(self) -> Scoring | None:
        """See `TextTower.scoring`."""
        return None

    @abstractmethod
    def _embed(self, texts: list[str]) -> Tensor:
        """Vectors (N, E) of a few texts."""

    @cached_property
    def fingerprint(self) -> str:
        """See `TextTower.fingerprint`; computed once, for a frozen tower does not change."""
        stated = {key: getattr(self._model.config, key) for key in TOWER_KEYS}
        described = json.dumps([stated, self._limit, sorted(self._tokenizer.get_vocab().items())])
        return text_hash(described + tensors_hash(self._model))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """See `TextTower.embed`."""
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            self._known.update(zip(chunk, self._embed(chunk), strict=True))
        return torch.stack([self._known[t] for t in texts]) if texts else torch.empty(0, self.embed_dim)

    def _tokens(self, texts: list[str], padding: bool | str = True) -> Any:
        """Padded model inputs (N, L)."""
        # Not every tokenizer reports what it cut off.
        uncut = self._tokenizer(texts, verbose=False)["input_ids"]
        cut = sum(len(ids) > self._limit for ids in uncut)
        if cut:
            logger.warning("%d of %d texts have over %d tokens and were cut", cut, len(texts), self._limit)
        return self._tokenizer(
            texts, padding=padding, truncation=True, max_length=self._limit, return_tensors="pt"
        )


class SentenceTower(FrozenTower):
    """A sentence-transformers checkpoint: mean of the last hidden states over the tokens.

    Mean pooling is what all-MiniLM-L6-v2 was trained with (Reimers & Gurevych 2019,
    https://arxiv.org/abs/1908.10084).
    """

    def __init__(self, reference: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        # The pooler of a BERT is not looked at, and checkpoints come with and without it.
        model = load_checkpoint(AutoModel, reference, optional=r"pooler\.|position_ids$")
        super().__init__(
            load_pretrained(AutoTokenizer, reference), model, model.config.max_position_embeddings
        )

    @property
    def embed_dim(self) -> int:
        """See `TextTower.embed_dim`."""
        return int(self._model.config.hidden_size)

    def _embed(self, texts: list[str]) -> Tensor:
        tokens = self._tokens(texts)
        hidden_NLE = self._model(**tokens).last_hidden_state
        mask_NL1 = tokens["attention_mask"].unsqueeze(-1).to(hidden_NLE.dtype)
        mean_NE: Tensor = (hidden_NLE * mask_NL1).sum(1) / mask_NL1.sum(1)
        return mean_NE


def take_scalar(model: nn.Module, name: str) -> Tensor:
    """A scalar of the whole checkpoint that was loaded with a half, taken out of it again.

    It does not change vectors, so it is no part of a fingerprint.
    """
    scalar = model.get_parameter(name).detach().reshape(())
    delattr(model, name)
    return scalar


def text_hash(text: str) -> str:
    """SHA-256 (32 hex digits) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def tensors_hash(model: nn.Module) -> str:
    """SHA-256 (32 hex digits) over names, shapes and float32 values of a model's state.

    It is of the values: widening bfloat16 to float32 keeps it, rounding float32 to bfloat16 changes it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:32]
