"""LangChain's view of an index: the only folder of this package that imports langchain-core."""

from __future__ import annotations

from vlmkit_retrieval.errors import MissingPackageError

try:
    from vlmkit_retrieval.langchain.embeddings import VlmkitEmbeddings
    from vlmkit_retrieval.langchain.retriever import ImageRetriever
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise MissingPackageError("langchain-core") from error

__all__ = ["ImageRetriever", "VlmkitEmbeddings"]
