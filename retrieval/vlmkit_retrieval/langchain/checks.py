"""That a store is opened as it was filled: what an engine holds is compared with what is given."""

from __future__ import annotations

import numpy as np
from langchain_core.embeddings import Embeddings

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.langchain.rows import DENSE, PICTURE, TERMS, TEXT
from vlmkit_retrieval.search import TermEncoder
from vlmkit_retrieval.types import Dense, Engine
from vlmkit_retrieval.where import Match, Not

# Vectors of one text by one model: other hardware, float16 and services change digits, not the direction.
_SAME = 0.99


def check_spaces(engine: Engine, terms: TermEncoder | None) -> None:
    """Refuse an engine that holds no documents, or documents of another kind.

    Raises:
        RetrievalUsageError: Other spaces, or terms on one side only.
    """
    spaces = engine.spaces()
    others = sorted(set(spaces) - {DENSE, TERMS})
    if others:
        raise RetrievalUsageError(
            f"the engine holds spaces of something else ({', '.join(others)}); give documents a place of "
            "their own, or search an index by VlmkitVectorStore.from_index"
        )
    if DENSE in spaces and (TERMS in spaces) != (terms is not None):
        found, do = ("with", "pass terms=") if TERMS in spaces else ("without", "leave out terms=")
        raise RetrievalUsageError(
            f"the documents are stored {found} BM25 terms; {do}Bm25Terms() to open them"
        )


def check_embedding(engine: Engine, embedding: Embeddings) -> None:
    """Embed one stored text again: vectors of two models in one space are compared without meaning.

    Raises:
        RetrievalError: Its vector is another one now.
    """
    space = engine.spaces().get(DENSE)
    if not isinstance(space, Dense):
        return
    anything_D = np.ones(space.width, np.float32)
    found = engine.search(DENSE, anything_D, 1, Not(Match(PICTURE, (True,))))
    for point in engine.retrieve([hit.id for hit in found], with_vectors=True).values():
        [now] = embedding.embed_documents([point.payload[TEXT]])
        stored_D, now_D = np.asarray(point.vectors[DENSE], np.float32), np.asarray(now, np.float32)
        if now_D.shape != stored_D.shape:
            raise RetrievalError(
                f"the stored vectors have {len(stored_D)} numbers, {type(embedding).__name__} gives "
                f"{len(now_D)}; open the store with the embeddings that filled it"
            )
        cosine = float(stored_D @ now_D / np.linalg.norm(stored_D) / np.linalg.norm(now_D))
        if not cosine >= _SAME:
            raise RetrievalError(
                f"document {point.id!r} has another vector by {type(embedding).__name__} now (cosine "
                f"{cosine:.3f}); open the store with the embeddings that filled it, or fill a new one"
            )
