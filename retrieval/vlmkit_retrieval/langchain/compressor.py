"""Documents that were retrieved, put in order by an encoder, without copies, and cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain.embeddings import VlmkitEmbeddings

Kind = Literal["image", "text"]


class VlmkitCompressor(BaseDocumentCompressor):
    """Ranks documents by an encoder's cosine to the query, drops near copies, and keeps the first `k`.

    An image (`kind` is "image" in its metadata) is opened at its `path` and compared as a picture, all else
    by its text. Texts are nearer to a text than images are, whatever is in them (the modality gap: Liang et
    al., "Mind the Gap", NeurIPS 2022). So each kind is ranked by itself, and ranks are merged: the first of
    each, then the second of each; within a rank the document that came first stays first. Documents with
    neither text nor picture come last. Metadata get `rerank_score`, the cosine.

    Attributes:
        embedder: An encoder with a text tower.
        k: So many documents are kept; all if not set.
        near: A document whose cosine to a kept one of its kind is above this is dropped; none if not set.
        batch_size: Documents that are embedded at once.

    Raises:
        ValidationError: `k` or `near` is not possible (pydantic's error, with our message).
    """

    embedder: Any
    k: int | None = None
    near: float | None = None
    batch_size: int = 32

    def model_post_init(self, context: Any) -> None:
        """Check what was given."""
        if self.k is not None and self.k < 1:
            raise RetrievalUsageError(f"k is {self.k}; at least 1 is needed")
        if self.near is not None and not -1 <= self.near <= 1:
            raise RetrievalUsageError(f"near is {self.near}; a cosine lies between -1 and 1")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The documents that are left, best first; copies of those given.

        Raises:
            RetrievalError: An image cannot be read any more.
        """
        embeddings = VlmkitEmbeddings(self.embedder, self.batch_size)
        embed: dict[Kind, Callable[[Sequence[Document]], list[list[float]]]] = {
            "image": lambda group: embeddings.embed_images([one.metadata["path"] for one in group]),
            "text": lambda group: embeddings.embed_documents([one.page_content for one in group]),
        }
        places: dict[Kind, list[int]] = {
            kind: [n for n, document in enumerate(documents) if _kind(document) == kind] for kind in embed
        }
        ranked = [
            (rank, own[n], _scored(documents[own[n]], score))
            for kind, own in places.items()
            if own
            for rank, (n, score) in enumerate(
                self._ranked(embed[kind]([documents[n] for n in own]), embeddings.embed_query(query))
            )
        ]
        merged = [document for _, _, document in sorted(ranked, key=lambda one: one[:2])]
        merged += [document.model_copy() for document in documents if _kind(document) is None]
        return merged[: self.k]

    def _ranked(self, vectors: list[list[float]], query: list[float]) -> list[tuple[int, float]]:
        """Rows with their cosines, best first, without those near to a better one; ties as they came."""
        rows_ND, query_D = np.asarray(vectors, np.float32), np.asarray(query, np.float32)
        scores_N = rows_ND @ query_D
        kept: list[int] = []
        for n in np.argsort(-scores_N, kind="stable").tolist():
            if self.near is None or not kept or (rows_ND[kept] @ rows_ND[n]).max() <= self.near:
                kept.append(n)
        return [(n, float(scores_N[n])) for n in kept]


def _kind(document: Document) -> Kind | None:
    if document.metadata.get("kind") == "image" and document.metadata.get("path"):
        return "image"
    return "text" if document.page_content.strip() else None


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "rerank_score": score}})
