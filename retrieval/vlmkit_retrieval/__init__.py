"""Multimodal retrieval: fill an index with images, search by text or image, answer with citations.

Names are imported when they are first used: `import vlmkit_retrieval` loads neither an engine nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmkit_retrieval.aggregate import Verdict, aggregate
    from vlmkit_retrieval.copy import copy_index
    from vlmkit_retrieval.engines import open_engine
    from vlmkit_retrieval.engines.tenant import Tenant
    from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
    from vlmkit_retrieval.feature_store import FeatureStore
    from vlmkit_retrieval.images import load_image
    from vlmkit_retrieval.index import Index
    from vlmkit_retrieval.rag import answer_question
    from vlmkit_retrieval.search import Bm25Terms, Searcher, SearchHit, SearchOptions
    from vlmkit_retrieval.types import (
        Answer,
        Answerer,
        Citation,
        Dense,
        Embedder,
        Engine,
        Hit,
        Multi,
        Point,
        Sparse,
        SyncReport,
        Terms,
        Unreadable,
    )
    from vlmkit_retrieval.where import parse_where

__all__ = [
    "Answer",
    "Answerer",
    "Bm25Terms",
    "Citation",
    "Dense",
    "Embedder",
    "Engine",
    "FeatureStore",
    "Hit",
    "Index",
    "Multi",
    "Point",
    "RetrievalError",
    "RetrievalUsageError",
    "SearchHit",
    "SearchOptions",
    "Searcher",
    "Sparse",
    "SyncReport",
    "Tenant",
    "Terms",
    "Unreadable",
    "Verdict",
    "aggregate",
    "answer_question",
    "copy_index",
    "load_image",
    "open_engine",
    "parse_where",
]

_MODULES = {
    "aggregate": ("Verdict", "aggregate"),
    "copy": ("copy_index",),
    "engines": ("open_engine",),
    "engines.tenant": ("Tenant",),
    "errors": ("RetrievalError", "RetrievalUsageError"),
    "feature_store": ("FeatureStore",),
    "images": ("load_image",),
    "index": ("Index",),
    "rag": ("answer_question",),
    "search": ("Bm25Terms", "SearchHit", "SearchOptions", "Searcher"),
    "types": (
        "Answer",
        "Answerer",
        "Citation",
        "Dense",
        "Embedder",
        "Engine",
        "Hit",
        "Multi",
        "Point",
        "Sparse",
        "SyncReport",
        "Terms",
        "Unreadable",
    ),
    "where": ("parse_where",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
