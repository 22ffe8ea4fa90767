"""How documents lie in an engine: what is stored of one, how it comes back, what a filter on it means."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.documents import Document

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.where import All, Either, Match, Not, Range, Where, parse_where

# A filter as `parse_where` reads it, or one that it has read.
Filter = Mapping[str, Any] | Where
DENSE, TERMS = "dense", "bm25"
# A document's metadata lie under a key of their own, so that no name in them collides with ours.
TEXT, METADATA, PICTURE = "text", "metadata", "picture"


@dataclass(frozen=True)
class Rows:
    """How the rows of an engine are documents.

    Attributes:
        space: Of their vectors.
        document: Makes a document of an id and a payload.
        where: Makes a filter on payloads of a filter on metadata.
    """

    space: str
    document: Callable[[str, Mapping[str, Any]], Document]
    where: Callable[[Where], Where]

    def read_filter(self, filter: Filter | None) -> Where | None:
        """A filter as the engine wants it.

        Raises:
            RetrievalUsageError: It is none, or something in it has no meaning.
        """
        if filter is None:
            return None
        if not isinstance(filter, Mapping | Where):
            raise RetrievalUsageError(
                f"filter: found {type(filter).__name__}; give a mapping of metadata, such as "
                '{"source": "a.pdf", "year": {"$gte": 2020}}'
            )
        return self.where(parse_where(filter) if isinstance(filter, Mapping) else filter)


def to_payload(document: Document, *, picture: bool = False) -> dict[str, Any]:
    """What is stored of a document beside its vectors.

    Args:
        document: Any.
        picture: Its vector is that of an image, not of its text.

    Raises:
        RetrievalError: Its metadata would come back as something else: tuples as lists, numbers that are keys
            as text. What is not JSON at all is refused by the engine.
    """
    try:
        kept = json.loads(json.dumps(document.metadata, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        kept = document.metadata  # the engine says why
    if kept != document.metadata:
        raise RetrievalError(
            f"document {document.id!r}: its metadata would come back as {str(kept)[:200]}; "
            "use lists for tuples, and texts as keys"
        )
    payload = {TEXT: document.page_content, METADATA: document.metadata}
    return {**payload, PICTURE: True} if picture else payload


def _document(id: str, payload: Mapping[str, Any]) -> Document:
    return Document(id=id, page_content=payload[TEXT], metadata=dict(payload[METADATA]))


def _in_metadata(where: Where) -> Where:
    """The filter with the keys of metadata where the engine has them."""
    match where:
        case Match(key, _) | Range(key=key):
            return replace(where, key=f"{METADATA}.{key}")
        case All(parts):
            return All(tuple(map(_in_metadata, parts)))
        case Either(parts):
            return Either(tuple(map(_in_metadata, parts)))
        case Not(part):
            return Not(_in_metadata(part))
    return where


DOCUMENTS = Rows(DENSE, _document, _in_metadata)


def to_documents(
    texts: Iterable[str], metadatas: Sequence[Mapping[str, Any]] | None, ids: Sequence[str | None] | None
) -> list[Document]:
    """Texts with what belongs to them; nothing is left out because a list is shorter.

    Raises:
        RetrievalUsageError: There are more or fewer metadatas or ids than texts.
    """
    texts = list(texts)
    metadatas = [{}] * len(texts) if metadatas is None else metadatas
    same_length(texts, "texts", metadatas, "metadatas")
    ids = given_ids([None] * len(texts), ids)
    rows = zip(texts, metadatas, ids, strict=True)
    return [Document(id=id, page_content=text, metadata=dict(metadata)) for text, metadata, id in rows]


def given_ids(own: Sequence[str | None], ids: Sequence[str | None] | None) -> list[str]:
    """An id for each document: that of `ids`, else its own, else a new one.

    Raises:
        RetrievalUsageError: There are more or fewer ids than documents.
    """
    ids = [None] * len(own) if ids is None else ids
    same_length(own, "documents", ids, "ids")
    return [first or second or str(uuid.uuid4()) for first, second in zip(ids, own, strict=True)]


def same_length(one: Sequence[Any], its_name: str, other: Sequence[Any], other_name: str) -> None:
    """Raise RetrievalUsageError where two lists that belong together are not of one length."""
    if len(one) != len(other):
        raise RetrievalUsageError(
            f"{len(one)} {its_name} with {len(other)} {other_name}; give one of each to every one"
        )


def refuse_unknown(given: Mapping[str, Any], possible: str) -> None:
    """Raise RetrievalUsageError for an argument that LangChain's signatures let through and nobody reads."""
    if given:
        raise RetrievalUsageError(f"unknown argument {next(iter(given))!r} (possible: {possible})")
