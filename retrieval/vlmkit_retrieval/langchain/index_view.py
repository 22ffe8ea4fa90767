"""An index as LangChain sees it: its items are documents, and nothing is written through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.documents import Document

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain.embeddings import VlmkitEmbeddings
from vlmkit_retrieval.langchain.reading import ReadStore
from vlmkit_retrieval.langchain.rows import Rows
from vlmkit_retrieval.types import Embedder

if TYPE_CHECKING:
    from vlmkit_retrieval.index import Index

_TEXT = "text"


def to_document(id: str, payload: Mapping[str, Any]) -> Document:
    """An item of an index: its caption or text is the content (may be empty), its payload the metadata."""
    # An index that was filled before there were kinds holds images alone.
    metadata = {"kind": "image"} | {key: value for key, value in payload.items() if key != _TEXT}
    return Document(id=id, page_content=payload.get(_TEXT) or "", metadata=metadata)


class IndexVectorStore(ReadStore):
    """The items of an index by the vectors of one encoder; filters are on payloads, as in `Index.search`.

    Args:
        index: Open; the caller closes it.
        embedder: One that filled it.

    Raises:
        RetrievalError: It did not.
    """

    def __init__(self, index: Index, embedder: Embedder) -> None:
        rows = Rows(index.require_encoder(embedder), to_document, lambda where: where)
        super().__init__(index.engine, VlmkitEmbeddings(embedder), rows)

    def add_documents(self, documents: Sequence[Document], **kwargs: Any) -> NoReturn:
        """Refused: an index holds what its folders hold."""
        raise _read_only()

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> NoReturn:
        """Refused: an index holds what its folders hold."""
        raise _read_only()

    @classmethod
    def from_texts(cls, texts: list[str], embedding: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an index holds what its folders hold."""
        raise _read_only()


def _read_only() -> RetrievalUsageError:
    return RetrievalUsageError(
        "an index is filled by its folders alone: change them and sync (vlmkit index sync INDEX PATH), or "
        "keep documents in a VlmkitVectorStore of their own"
    )
