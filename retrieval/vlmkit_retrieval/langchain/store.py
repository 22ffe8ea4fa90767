"""A LangChain vector store over any engine of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from langchain_core.embeddings import Embeddings

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.langchain.checks import check_embedding, check_spaces
from vlmkit_retrieval.langchain.index_view import IndexVectorStore
from vlmkit_retrieval.langchain.rows import refuse_unknown
from vlmkit_retrieval.langchain.writing import WriteStore
from vlmkit_retrieval.search import TermEncoder
from vlmkit_retrieval.types import Embedder, Engine


class VlmkitVectorStore(WriteStore):
    """Documents with their vectors, in a directory, in memory, or on a Qdrant server.

    An id is any text. A document that is added under an id that is there replaces the one that was. Metadata
    are JSON values and come back as they were given, with nothing added.

    Args:
        embedding: Any LangChain embeddings; `VlmkitEmbeddings` for images, too.
        location: A directory, `:memory:`, a server's URL (see `open_engine`); the store closes what it opens.
            Or an open engine (a `Tenant`, too), which the caller closes.
        terms: Search by words as well (BM25) and fuse both: `Bm25Terms()`. The same at every opening.

    Raises:
        RetrievalError: The engine cannot be opened, or what is in it was not stored by these embeddings.
        RetrievalUsageError: It holds something else than documents, or documents with terms are opened
            without, or the other way round.
    """

    def __init__(
        self,
        embedding: Embeddings,
        location: str | os.PathLike[str] | Engine = ":memory:",
        *,
        terms: TermEncoder | None = None,
    ) -> None:
        self._owns = isinstance(location, str | os.PathLike)
        engine = open_engine(location) if isinstance(location, str | os.PathLike) else location
        super().__init__(engine, embedding, terms)
        try:
            check_spaces(engine, terms)
            check_embedding(engine, embedding)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        location: str | os.PathLike[str] | Engine = ":memory:",
        terms: TermEncoder | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts in it; those that are there already stay."""
        refuse_unknown(kwargs, "ids, location, terms")
        store = cls(embedding, location, terms=terms)
        try:
            store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    @staticmethod
    def from_index(index: Any, embedder: Embedder) -> IndexVectorStore:
        """An index that `vlmkit index sync` keeps, to be searched only; see `IndexVectorStore`."""
        return IndexVectorStore(index, embedder)

    def close(self) -> None:
        """Close the engine, if the store has opened it; closing twice is no error."""
        if self._owns:
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
