"""An index, or any searcher, as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain.asked import Query, read_query
from vlmkit_retrieval.langchain.index_view import to_document
from vlmkit_retrieval.search import Searcher, SearchHit, SearchOptions


class VlmkitRetriever(BaseRetriever):
    """Finds images, pages and texts by text, by image, or by both; `k` and `filter` may be set in a call.

    LangChain types a retriever's input as text, and so a chain gives it. `invoke`, `ainvoke` and `batch` take
    more: a Pillow image, a `HumanMessage`, or a list of content blocks (text, and one image as base64 or data
    URI); or a text with `image=PICTURE`. Tracers are shown the text alone.

    A document's `page_content` is the caption or the text, empty where an item has none. Its metadata are the
    item's payload (`path`, `kind`, `page`, ...), `score`, `explanation` (a line a list that was asked), and
    `duplicates`, ids, where `options` collapse some.

    Attributes:
        index: An open `Index` or a `Searcher`; the caller closes it.
        embedder: One that filled the index, or several; none with a `Searcher`.
        k: Number of documents.
        filter: Only items that it lets through (see `where.py`).
        options: `SearchOptions`.
        also: More spaces of an index to ask (see `Index.search`).
        fetch_image: Gives the bytes behind an http(s) address in a message; none are opened without it.
    """

    # Any: pydantic would otherwise check protocols and classes it knows nothing about.
    index: Any
    embedder: Any = None
    k: int = 10
    filter: Any = None
    options: Any = None
    also: Any = ()
    fetch_image: Any = None

    def invoke(
        self,
        input: Query,
        config: RunnableConfig | None = None,
        *,
        image: Image.Image | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The documents for a query.

        Args:
            input: A text, an image, a message, or blocks.
            config: LangChain's.
            image: A picture beside a text.
            kwargs: `k` and `filter` of this call.
        """
        text, picture = self._read(input, image)
        return super().invoke(text, config, image=picture, **kwargs)

    async def ainvoke(
        self,
        input: Query,
        config: RunnableConfig | None = None,
        *,
        image: Image.Image | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `invoke`."""
        text, picture = await run_in_executor(config, self._read, input, image)
        return await super().ainvoke(text, config, image=picture, **kwargs)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        image: Image.Image | None = None,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        return self._find(query, image, k, filter)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        image: Image.Image | None = None,
        k: int | None = None,
        filter: Any = None,
    ) -> list[Document]:
        return await run_in_executor(None, self._find, query, image, k, filter)

    def _read(self, given: Query, image: Image.Image | None) -> tuple[str, Image.Image | None]:
        text, picture = read_query(given, self.fetch_image)
        if image is not None and picture is not None:
            raise RetrievalUsageError("the query has an image, and image= is another; give one of them")
        return text, picture or image

    def _find(self, text: str, image: Image.Image | None, k: int | None, filter: Any) -> list[Document]:
        hits = self._search(
            text if text or image is None else None,
            image,
            self.k if k is None else k,
            self.filter if filter is None else filter,
        )
        return [_document(hit) for hit in hits]

    def _search(self, text: str | None, image: Image.Image | None, k: int, where: Any) -> Sequence[SearchHit]:
        """The one place that knows how an index is asked."""
        options = self.options or SearchOptions()
        if isinstance(self.index, Searcher):
            return self.index.search(text, image, k=k, where=where, options=options)
        if self.embedder is None:
            raise RetrievalUsageError("an index is searched with an encoder; pass embedder=load_encoder(...)")
        found: list[SearchHit] = self.index.search(
            text, image, embedder=self.embedder, k=k, where=where, options=options, also=self.also
        )
        return found


def _document(hit: SearchHit) -> Document:
    document = to_document(hit.id, hit.payload)
    why = {"score": hit.score, "explanation": str(hit.explanation)}
    copies = {"duplicates": [copy.id for copy in hit.duplicates]} if hit.duplicates else {}
    return document.model_copy(update={"metadata": {**document.metadata, **why, **copies}})
