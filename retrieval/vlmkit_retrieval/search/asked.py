"""Spaces as a search asks them: what turns a text or an image into a vector of the space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from vlmkit_retrieval.search.terms import TermEncoder
from vlmkit_retrieval.types import Embedder, Vector, Vectors


class TextEmbedder(Protocol):
    """What embeds texts only: captions, passages, queries."""

    def embed_text(self, texts: list[str]) -> Vectors:
        """Unit-length float32 vectors of shape (len(texts), D)."""
        ...


@dataclass(frozen=True)
class AskedSpace:
    """One space of an engine, and how a query gets there.

    Attributes:
        name: Of the space.
        text: The vector of a text; None where a text cannot be asked.
        image: The vector of an image; None where an image cannot be asked.
        pooled: Of a space of several vectors an item: the space of fewer vectors that chooses which items are
            compared (Dense, or Multi).
    """

    name: str
    text: Callable[[str], Vector] | None = None
    image: Callable[[Image.Image], Vector] | None = None
    pooled: str | None = None


def image_space(name: str, embedder: Embedder, *, text: bool = True) -> AskedSpace:
    """The image vectors of an encoder, asked by images, and by texts if it has a text tower (`text`)."""
    return AskedSpace(
        name,
        (lambda query: _first(embedder.embed_text([query]))) if text else None,
        lambda picture: _first(embedder.embed_images([picture])),
    )


def text_space(name: str, embedder: TextEmbedder) -> AskedSpace:
    """The vectors that a text encoder made of captions and passages, asked by texts."""
    return AskedSpace(name, lambda query: _first(embedder.embed_text([query])))


def term_space(name: str, encoder: TermEncoder) -> AskedSpace:
    """The weighted terms of captions and passages (BM25), asked by texts."""
    return AskedSpace(name, encoder.embed_query)


def patch_space(
    name: str,
    pooled: str,
    text: Callable[[str], Vectors] | None = None,
    image: Callable[[Image.Image], Vectors] | None = None,
) -> AskedSpace:
    """A space of patches, compared by MaxSim: only the items that the pooled space puts first are compared.

    Args:
        name: The space of all patches.
        pooled: The space of the mean patch, or of few pooled ones, in the same width.
        text: Vectors of shape (N, D) of a text, where it shares the patches' space.
        image: Vectors of shape (N, D) of an image.
    """
    return AskedSpace(name, text, image, pooled)


def _first(vectors: Vectors) -> Vectors:
    return np.asarray(vectors[0], np.float32)
