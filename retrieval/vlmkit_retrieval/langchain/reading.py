"""What can be asked of documents in an engine, in LangChain's words; writing is `store.py`'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain.embeddings import ImageSource
from vlmkit_retrieval.langchain.mmr import picked, scaled
from vlmkit_retrieval.langchain.rows import TERMS, Filter, Rows, refuse_unknown
from vlmkit_retrieval.search import AskedSpace, Searcher, TermEncoder, term_space
from vlmkit_retrieval.types import Engine, Hit

_OF_A_SEARCH = "k, filter"
_OF_MMR = "k, fetch_k, lambda_mult, filter"


@runtime_checkable
class ImageEmbeddings(Protocol):
    """Embeddings of images beside those of texts, in the same space."""

    def embed_images(self, images: Sequence[ImageSource]) -> list[list[float]]:
        """One vector an image."""
        ...


class ReadStore(VectorStore):
    """The searches of a vector store.

    `filter` is a mapping of metadata in the words of `where.py`. Scores are cosines in [-1, 1], largest
    first; with `terms` they are fused from two lists, order one query's hits, and mean nothing else. Async
    methods await the embeddings' own, and leave the engine's part to a thread: engines have no async calls.

    Args:
        engine: An open engine.
        embedding: Of texts, and of images where they are searched for.
        rows: How the engine's rows are documents.
        terms: Ask the space of BM25 terms, too, and fuse both lists.
    """

    def __init__(
        self, engine: Engine, embedding: Embeddings, rows: Rows, terms: TermEncoder | None = None
    ) -> None:
        self.engine = engine
        self.embedding = embedding
        self.terms = terms
        self._rows = rows

    @property
    def embeddings(self) -> Embeddings:
        """What embeds queries."""
        return self.embedding

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in this order, each once; ids that are not there are left out."""
        return [self._document(point.id, point.payload) for point in self.engine.retrieve(ids).values()]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` documents nearest to a text, best first."""
        return _documents(self.similarity_search_with_score(query, k, filter=filter, **kwargs))

    async def asimilarity_search(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search`."""
        return _documents(await self.asimilarity_search_with_score(query, k, filter=filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, each with its score."""
        refuse_unknown(kwargs, _OF_A_SEARCH)
        return self._scored(self._hits(query, self.embedding.embed_query(query), k, filter))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`."""
        refuse_unknown(kwargs, _OF_A_SEARCH)
        vector = await self.embedding.aembed_query(query)
        return self._scored(await run_in_executor(None, self._hits, query, vector, k, filter))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` documents nearest to a vector, which words cannot be searched with."""
        refuse_unknown(kwargs, _OF_A_SEARCH)
        return _documents(self._scored(self._hits(None, embedding, k, filter)))

    def similarity_search_by_image(
        self, image: ImageSource, k: int = 4, *, filter: Filter | None = None
    ) -> list[Document]:
        """The `k` documents nearest to an image: a file or a Pillow image.

        Raises:
            RetrievalUsageError: The embeddings have no `embed_images`.
            RetrievalError: The image cannot be read.
        """
        [vector] = self._image_embeddings().embed_images([image])
        return self.similarity_search_by_vector(vector, k, filter=filter)

    async def asimilarity_search_by_image(
        self, image: ImageSource, k: int = 4, *, filter: Filter | None = None
    ) -> list[Document]:
        """As `similarity_search_by_image`."""
        return await run_in_executor(None, self.similarity_search_by_image, image, k, filter=filter)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`k` documents near to a text and unlike each other, of the `fetch_k` nearest (see `mmr.picked`)."""
        refuse_unknown(kwargs, _OF_MMR)
        vector = self.embedding.embed_query(query)
        hits = self._hits(query, vector, max(k, fetch_k), filter)
        return self._diverse(hits, k, lambda_mult, fused=self.terms is not None)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`."""
        refuse_unknown(kwargs, _OF_MMR)
        vector = await self.embedding.aembed_query(query)
        hits = await run_in_executor(None, self._hits, query, vector, max(k, fetch_k), filter)
        fused = self.terms is not None
        return await run_in_executor(None, self._diverse, hits, k, lambda_mult, fused=fused)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, of a vector."""
        refuse_unknown(kwargs, _OF_MMR)
        hits = self._hits(None, embedding, max(k, fetch_k), filter)
        return self._diverse(hits, k, lambda_mult, fused=False)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """From a cosine to 0..1, as langchain-qdrant does: (1 + cosine) / 2."""
        if self.terms is not None:
            raise RetrievalUsageError(
                "scores that are fused of two lists say nothing about similarity, so no threshold fits them; "
                "search without it, or open the store without terms"
            )
        return lambda cosine: min(1.0, max(0.0, (1 + cosine) / 2))

    def _hits(
        self, text: str | None, vector: Sequence[float], k: int, filter: Filter | None
    ) -> Sequence[Hit]:
        where, space = self._rows.read_filter(filter), self._rows.space
        if space not in self.engine.spaces():
            return []  # nothing was ever stored
        query_D = np.asarray(vector, np.float32)
        if self.terms is None or text is None:
            return self.engine.search(space, query_D, k, where, exact=not self.engine.approximate)
        spaces = [AskedSpace(space, text=lambda _: query_D), term_space(TERMS, self.terms)]
        return Searcher(self.engine, spaces).search(text, k=k, where=where)

    def _diverse(self, hits: Sequence[Hit], k: int, part: float, *, fused: bool) -> list[Document]:
        points = self.engine.retrieve([hit.id for hit in hits], with_vectors=True)
        hits = [hit for hit in hits if hit.id in points]  # another thread may just have removed one
        if not hits:
            return []
        rows_ND = np.array([points[hit.id].vectors[self._rows.space] for hit in hits], np.float32)
        scores_N = np.array([hit.score for hit in hits])
        order = picked(scaled(scores_N) if fused else scores_N, rows_ND, k, part)
        return [self._document(hits[n].id, hits[n].payload) for n in order]

    def _image_embeddings(self) -> ImageEmbeddings:
        if not isinstance(self.embedding, ImageEmbeddings):
            raise RetrievalUsageError(
                f"{type(self.embedding).__name__} embeds no images (it has no embed_images); "
                "use VlmkitEmbeddings with an image encoder"
            )
        return self.embedding

    def _scored(self, hits: Sequence[Hit]) -> list[tuple[Document, float]]:
        return [(self._document(hit.id, hit.payload), hit.score) for hit in hits]

    def _document(self, id: str, payload: Any) -> Document:
        return self._rows.document(id, payload)


def _documents(scored: Sequence[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in scored]
