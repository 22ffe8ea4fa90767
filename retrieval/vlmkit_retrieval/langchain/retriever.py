"""An index as a LangChain retriever."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from vlmkit_retrieval.types import Hit


class ImageRetriever(BaseRetriever):
    """Finds images by text; `retriever.invoke("a red circle")`, or `ainvoke`, with `k=...` for one call.

    A document's `page_content` is the image's caption where its payload has one, else its file name; its
    metadata are `path`, `score` (cosine similarity) and `id`.

    Attributes:
        index: An open `Index`; the caller closes it.
        embedder: The encoder that filled it, with a text tower.
        k: Number of documents.
    """

    # Any: pydantic would otherwise check a Protocol and a class it knows nothing about.
    index: Any
    embedder: Any
    k: int = 10

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return self._find(query, k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return await asyncio.to_thread(self._find, query, k)

    def _find(self, query: str, k: int | None) -> list[Document]:
        hits = self.index.search(text=query, embedder=self.embedder, k=self.k if k is None else k)
        return [_document(hit) for hit in hits]


def _document(hit: Hit) -> Document:
    path = hit.payload["path"]
    metadata = {"path": path, "score": hit.score, "id": hit.id}
    return Document(
        id=hit.id, page_content=hit.payload.get("caption", PurePosixPath(path).name), metadata=metadata
    )
