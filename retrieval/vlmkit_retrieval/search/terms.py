"""Weighted terms of texts, for sparse spaces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from vlmkit_retrieval.errors import MissingPackageError, RetrievalUsageError
from vlmkit_retrieval.types import Terms

# Words, inflections, accents, numbers and scripts that tokenisers treat differently.
_PROBE = (
    "The runners were running to the cafés of Zürich at 10:45, CR-7891!",
    "Les chevaux mangeaient; die Häuser sind größer; los niños corren",
    "日本語のテキスト и русские слова, emoji 🎨, snake_case, don't",
)


class TermEncoder(Protocol):
    """What turns texts into weighted terms, documents and queries in their own way.

    Attributes:
        name: Of the sparse vector in an index.
        fingerprint: Hash of everything that changes the terms; an index refuses any other.
    """

    @property
    def name(self) -> str:
        """Short name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes the terms."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> list[Terms]:
        """The terms of stored texts; those without a term give empty ones, which are not stored."""
        ...

    def embed_query(self, text: str) -> Terms:
        """The terms of a query."""
        ...


class Bm25Terms:
    """BM25 by Qdrant's own encoder: offline, with stop words and stemming of some 20 languages.

    The engine multiplies in the inverse document frequency (a `Sparse` space). Robertson and Zaragoza, "The
    Probabilistic Relevance Framework: BM25 and Beyond", 2009.

    Args:
        language: Of stop words and stemmer (`english`, `german`, ...).
        average_length: Terms of a usual text; longer texts have each of their terms count less.

    Raises:
        MissingPackageError: `qdrant-edge-py` is not installed, which also serves where another engine stores.
        RetrievalUsageError: A language that it does not know, or an impossible length.
    """

    name = "bm25"

    def __init__(self, language: str = "english", average_length: float = 256.0) -> None:
        edge = _import_edge()
        self.language = language
        self.average_length = average_length
        try:
            self._bm25 = edge.Bm25(edge.Bm25Config(language=language, avg_len=average_length))
        except ValueError as error:
            raise RetrievalUsageError(
                f"BM25 with language {language!r} and average length {average_length}: {error}; "
                "use a name such as english, german, french or spanish, and a length above 0"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what it makes of a few texts: an update that changes its terms changes this."""
        made = [*self.embed_documents(_PROBE), *map(self.embed_query, _PROBE)]
        content = [self.language, self.average_length, [[list(t.indices), list(t.values)] for t in made]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def embed_documents(self, texts: Sequence[str]) -> list[Terms]:
        """See `TermEncoder.embed_documents`."""
        return [_terms(self._bm25.embed_document(text)) for text in texts]

    def embed_query(self, text: str) -> Terms:
        """See `TermEncoder.embed_query`: each term of the query weighs 1."""
        return _terms(self._bm25.embed_query(text))


def _terms(sparse: Any) -> Terms:
    """In order of the terms' numbers, so that equal terms are equal objects."""
    pairs = sorted(zip(sparse.indices, sparse.values, strict=True))
    return Terms([index for index, _ in pairs], [value for _, value in pairs])


def _import_edge() -> Any:
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingPackageError("qdrant-edge-py") from error
    return qdrant_edge
