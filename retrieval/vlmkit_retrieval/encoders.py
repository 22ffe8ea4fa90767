"""What fills an index, by kind: images, texts, weighted terms, patches.

| kind | method | of an item it takes | spaces |
| --- | --- | --- | --- |
| image | `embed_images` | its pixels | one vector |
| text | `embed_text` alone | its text | one vector |
| terms | `embed_documents` | its text | a sparse vector |
| patches | `embed_patches` | its pixels | several vectors, and their mean beside them |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import numpy as np
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search.asked import AskedSpace, image_space, patch_space, term_space
from vlmkit_retrieval.search.terms import TermEncoder
from vlmkit_retrieval.types import Dense, Embedder, Multi, Space, Sparse, VectorEncoder, Vectors

EncoderKind = Literal["image", "text", "terms", "patches"]
KINDS: tuple[EncoderKind, ...] = get_args(EncoderKind)


class TextEmbedder(VectorEncoder, Protocol):
    """What embeds captions, passages and queries.

    Where it has a method `embed_query` too, queries go there: checkpoints with a prompt for each need it.
    """

    def embed_text(self, texts: Sequence[str]) -> Vectors:
        """Unit-length float32 vectors of shape (len(texts), embed_dim)."""
        ...


class PatchEmbedder(VectorEncoder, Protocol):
    """What gives several vectors of each image, compared by MaxSim; their mean has `pooled_name(name)`."""

    def embed_patches(self, images: Sequence[Image.Image]) -> list[Vectors]:
        """Of each image unit-length float32 vectors of shape (N, embed_dim), N x embed_dim <= 1,048,576."""
        ...


Encoder = Embedder | TextEmbedder | PatchEmbedder | TermEncoder
# In this order: a vision encoder with a text tower has both of the last two.
_METHODS: dict[str, EncoderKind] = {
    "embed_documents": "terms",
    "embed_patches": "patches",
    "embed_images": "image",
    "embed_text": "text",
}


def kind_of(encoder: Encoder) -> EncoderKind:
    """What an encoder is, by the method it has.

    Raises:
        RetrievalUsageError: It has none of them.
    """
    for method, kind in _METHODS.items():
        if callable(getattr(encoder, method, None)):
            return kind
    raise RetrievalUsageError(
        f"{type(encoder).__name__} is no encoder: it has none of the methods {', '.join(_METHODS)}"
    )


def width_of(encoder: Encoder) -> int:
    """Width of its vectors; 0 of weighted terms."""
    return int(getattr(encoder, "embed_dim", 0))


def embeds_text(embedder: Embedder) -> bool:
    """Whether an image encoder has a text tower; by contract it raises ValueError where it has none."""
    try:
        embedder.embed_text(["a photo"])
    except ValueError:
        return False
    return True


def pooled_name(name: str) -> str:
    """The space of the mean of each item's patches."""
    return f"{name}-mean"


def spaces_of(name: str, kind: EncoderKind, width: int) -> dict[str, Space]:
    """The spaces that an encoder fills."""
    match kind:
        case "terms":
            return {name: Sparse()}
        case "patches":
            return {name: Multi(width), pooled_name(name): Dense(width)}
    return {name: Dense(width)}


def asked_space(name: str, encoder: Encoder, text: bool = True) -> AskedSpace:
    """How a search asks the space of an encoder.

    Args:
        name: Of the space.
        encoder: That filled it.
        text: Of an image encoder, whether it has a text tower.
    """
    if callable(getattr(encoder, "embed_documents", None)):
        return term_space(name, encoder)  # type: ignore[arg-type]
    if callable(patches := getattr(encoder, "embed_patches", None)):
        return patch_space(name, pooled_name(name), image=lambda picture: patches([picture])[0])
    if callable(getattr(encoder, "embed_images", None)):
        return image_space(name, encoder, text=text)  # type: ignore[arg-type]
    embed = getattr(encoder, "embed_query", None) or encoder.embed_text  # type: ignore[union-attr]
    return AskedSpace(name, lambda query: np.asarray(embed([query])[0], np.float32))
