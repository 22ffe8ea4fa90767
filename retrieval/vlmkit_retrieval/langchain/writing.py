"""What can be written to documents in an engine, in LangChain's words."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain.embeddings import ImageSource
from vlmkit_retrieval.langchain.reading import ReadStore
from vlmkit_retrieval.langchain.rows import (
    DENSE,
    DOCUMENTS,
    TERMS,
    Filter,
    given_ids,
    refuse_unknown,
    same_length,
    to_documents,
    to_payload,
)
from vlmkit_retrieval.search import TermEncoder
from vlmkit_retrieval.types import Dense, Engine, Point, Sparse, Vector

_OF_ADDING = "ids, batch_size"
_BATCH = 256


class WriteStore(ReadStore):
    """A store of documents that are added and removed through it.

    Args:
        engine: An open engine.
        embedding: Of texts, and of images where they are stored.
        terms: Store the terms of texts, too (BM25).
    """

    def __init__(self, engine: Engine, embedding: Embeddings, terms: TermEncoder | None = None) -> None:
        super().__init__(engine, embedding, DOCUMENTS, terms)
        self._making = threading.Lock()

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_documents`; as many metadatas and ids as texts, or none."""
        return self.add_documents(to_documents(texts, metadatas, ids), **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`."""
        return await self.aadd_documents(to_documents(texts, metadatas, ids), **kwargs)

    def add_documents(
        self,
        documents: Sequence[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _BATCH,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and store documents; of several with one id in a call the last one stays.

        Args:
            documents: Any number; they are not changed.
            ids: One each, before the documents' own; where neither is, a new one is made.
            batch_size: So many are embedded and stored at a time. What is stored stays, if a later one fails.
            kwargs: Nothing; LangChain's signature has it.

        Returns:
            Their ids, in order.

        Raises:
            RetrievalError: Metadata that are not JSON, or a vector that cannot be stored.
        """
        refuse_unknown(kwargs, _OF_ADDING)
        named, order = _named(documents, ids)
        for batch in _batches(named, batch_size):
            self._put(batch, self.embedding.embed_documents([document.page_content for document in batch]))
        return order

    async def aadd_documents(
        self,
        documents: Sequence[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _BATCH,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_documents`."""
        refuse_unknown(kwargs, _OF_ADDING)
        named, order = _named(documents, ids)
        for batch in _batches(named, batch_size):
            texts = [document.page_content for document in batch]
            await run_in_executor(None, self._put, batch, await self.embedding.aembed_documents(texts))
        return order

    def add_images(
        self,
        images: Sequence[ImageSource],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        captions: Sequence[str] | None = None,
        ids: Sequence[str | None] | None = None,
        batch_size: int = 32,
    ) -> list[str]:
        """Store images by their own vectors; a caption is the document's text, and what words are found in.

        Args:
            images: Files or Pillow images.
            metadatas: One each; without them `{"path": FILE}` for a file, none for another image.
            captions: One each; empty texts without.
            ids: One each.
            batch_size: So many are embedded and stored at a time.

        Returns:
            Their ids, in order.

        Raises:
            RetrievalUsageError: The embeddings have no `embed_images`, or lists of different lengths.
            RetrievalError: An image cannot be read.
        """
        encoder = self._image_embeddings()
        metadatas = [_named_file(image) for image in images] if metadatas is None else metadatas
        documents = to_documents([""] * len(images) if captions is None else captions, metadatas, ids)
        same_length(documents, "documents", images, "images")
        pictures = {document.id: image for document, image in zip(documents, images, strict=True)}
        named, order = _named(documents, None)
        for batch in _batches(named, batch_size):
            vectors = encoder.embed_images([pictures[document.id] for document in batch])
            self._put(batch, vectors, picture=True)
        return order

    async def aadd_images(
        self,
        images: Sequence[ImageSource],
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        *,
        captions: Sequence[str] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """As `add_images`."""
        return await run_in_executor(None, self.add_images, images, metadatas, captions=captions, ids=ids)

    def delete(
        self, ids: Sequence[str] | None = None, *, filter: Filter | None = None, **kwargs: Any
    ) -> bool:
        """Remove documents by id, or by their metadata; what is not there is no error.

        Raises:
            RetrievalUsageError: Neither, or both are given. `filter={}` removes everything.
        """
        refuse_unknown(kwargs, "ids, filter")
        if (ids is None) == (filter is None):
            raise RetrievalUsageError("delete takes ids or a filter; filter={} removes all documents")
        self.engine.delete(list(ids) if ids is not None else self.engine.ids(self._rows.read_filter(filter)))
        return True

    def _put(
        self, documents: Sequence[Document], vectors: Sequence[Sequence[float]], *, picture: bool = False
    ) -> None:
        same_length(documents, "documents", vectors, "vectors")
        rows: list[dict[str, Vector]] = [{DENSE: np.asarray(vector, np.float32)} for vector in vectors]
        if self.terms is not None:
            terms = self.terms.embed_documents([document.page_content for document in documents])
            for row, own in zip(rows, terms, strict=True):
                row.update({TERMS: own} if len(own.indices) else {})
        payloads = [to_payload(document, picture=picture) for document in documents]
        with self._making:
            self.engine.ensure(
                {DENSE: Dense(len(vectors[0])), **({} if self.terms is None else {TERMS: Sparse()})}
            )
        ids = [str(document.id) for document in documents]
        self.engine.upsert([Point(*row) for row in zip(ids, rows, payloads, strict=True)])


def _named(
    documents: Sequence[Document], ids: Sequence[str | None] | None
) -> tuple[list[Document], list[str]]:
    """Documents with an id each, of several with one id the last; and all ids in order."""
    order = given_ids([document.id for document in documents], ids)
    named = dict(zip(order, documents, strict=True))
    return [document.model_copy(update={"id": id}) for id, document in named.items()], order


def _batches(documents: Sequence[Document], size: int) -> Iterator[Sequence[Document]]:
    if size < 1:
        raise RetrievalUsageError(f"batch_size is {size}; at least 1 is needed")
    return (documents[start : start + size] for start in range(0, len(documents), size))


def _named_file(image: ImageSource) -> dict[str, Any]:
    return {} if isinstance(image, Image.Image) else {"path": os.fspath(image)}
