"""Retrieval in LangChain's classes: the only folder of this package that imports langchain-core.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vlmkit_retrieval.errors import MissingPackageError

try:
    import langchain_core as _  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise MissingPackageError("langchain-core") from error

if TYPE_CHECKING:
    from vlmkit_retrieval.langchain.compressor import VlmkitCompressor
    from vlmkit_retrieval.langchain.embeddings import VlmkitEmbeddings
    from vlmkit_retrieval.langchain.index_view import IndexVectorStore
    from vlmkit_retrieval.langchain.loaders import VlmkitImageLoader, VlmkitPdfLoader
    from vlmkit_retrieval.langchain.records import VlmkitRecordManager
    from vlmkit_retrieval.langchain.retriever import VlmkitRetriever
    from vlmkit_retrieval.langchain.store import VlmkitVectorStore

__all__ = [
    "IndexVectorStore",
    "VlmkitCompressor",
    "VlmkitEmbeddings",
    "VlmkitImageLoader",
    "VlmkitPdfLoader",
    "VlmkitRecordManager",
    "VlmkitRetriever",
    "VlmkitVectorStore",
]

_MODULE_OF = {
    "IndexVectorStore": "index_view",
    "VlmkitCompressor": "compressor",
    "VlmkitEmbeddings": "embeddings",
    "VlmkitImageLoader": "loaders",
    "VlmkitPdfLoader": "loaders",
    "VlmkitRecordManager": "records",
    "VlmkitRetriever": "retriever",
    "VlmkitVectorStore": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
