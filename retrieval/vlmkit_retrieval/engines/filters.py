"""A filter in the words of a library: one walk over the tree, five words a library.

The words of qdrant-edge-py and qdrant-client mean the same and are spelled differently. What a filter means
is `where.holds`, and a test draws payloads and filters at random to hold every engine to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vlmkit_retrieval.engines.checks import to_uuid
from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.where import All, Either, HasId, HasVector, Match, Not, Range, Where

_INT64 = 2**63


class Words(Protocol):
    """What a library calls the parts of a filter."""

    def join(
        self,
        must: list[Any] | None = None,
        should: list[Any] | None = None,
        must_not: list[Any] | None = None,
    ) -> Any:
        """A filter, which is a condition too; without conditions everything passes."""
        ...

    def equals(self, key: str, value: bool) -> Any:
        """The value is this truth value."""
        ...

    def any_of(self, key: str, values: list[str] | list[int]) -> Any:
        """The value is one of these."""
        ...

    def within(self, key: str, bounds: Range) -> Any:
        """The number lies within bounds."""
        ...

    def has_vector(self, name: str) -> Any:
        """The point has this vector."""
        ...

    def has_id(self, uuids: list[str]) -> Any:
        """The point is one of these."""
        ...


def to_filter(where: Where | None, words: Words) -> Any:
    """The library's filter; None where nothing is filtered.

    Raises:
        RetrievalUsageError: A payload key that no engine can look up.
    """
    if where is None:
        return None
    condition = _condition(where, words)
    return condition if isinstance(where, All | Not) else words.join(must=[condition])


def _condition(where: Where, words: Words) -> Any:
    match where:
        case Match(key, values):
            return _match(payload_path(key), values, words)
        case Range():
            return words.within(payload_path(where.key), where)
        case HasVector(name):
            return words.has_vector(name)
        case HasId(ids):
            return words.has_id([to_uuid(id) for id in ids])
        case All(parts):
            return words.join(must=[_condition(part, words) for part in parts])
        case Either(parts):
            return _any([_condition(part, words) for part in parts], words)
        case Not(part):
            return words.join(must_not=[_condition(part, words)])


def _match(path: str, values: Sequence[str | int | bool], words: Words) -> Any:
    """Truth values, whole numbers and texts apart: 1 is not true."""
    truths = [words.equals(path, value) for value in values if isinstance(value, bool)]
    texts = [value for value in values if isinstance(value, str)]
    wholes = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and -_INT64 <= v < _INT64]
    lists = [words.any_of(path, some) for some in (texts, wholes) if some]
    return _any([*truths, *lists], words)


def _any(conditions: list[Any], words: Words) -> Any:
    """At least one; none of no conditions, where an empty list would let everything through."""
    if len(conditions) == 1:
        return conditions[0]
    return words.join(should=conditions) if conditions else words.join(must_not=[words.join()])


def payload_path(key: str) -> str:
    """A payload key as libraries want it: its parts in quotes, so that brackets have no meaning."""
    if '"' in key or "\\" in key:
        raise RetrievalUsageError(
            f"filter: payload key {key!r} has a quotation mark or a backslash, by which not every engine can "
            "look it up; rename it"
        )
    return ".".join(f'"{part}"' for part in key.split("."))
