"""Filters on payloads: a small tree that every engine translates, and what users write for it.

The words are those that Chroma, Pinecone and LangChain's stores have from MongoDB. Keys of a mapping are
joined by "and"; a list of values means any of them:

    {"kind": "image", "year": {"$gte": 2019, "$lt": 2024}, "tags": ["red", "blue"]}
    {"$or": [{"kind": "page"}, {"$not": {"album": "holidays"}}]}

A payload value that is a list matches where any of its members does, as in Qdrant. A key with dots reaches
into nested mappings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmkit_retrieval.errors import RetrievalUsageError

_BOUNDS = {"$gt": "gt", "$gte": "gte", "$lt": "lt", "$lte": "lte"}
_JOINS = ("$and", "$or", "$not", "$vector", "$id")
_COMPARES = (*_BOUNDS, "$eq", "$ne", "$in", "$nin")


@dataclass(frozen=True)
class Match:
    """The value at `key` is one of `values`."""

    key: str
    values: tuple[str | int | bool, ...]


@dataclass(frozen=True)
class Range:
    """The number at `key` lies within bounds; None is no bound."""

    key: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True)
class HasVector:
    """The item has a vector of this name."""

    name: str


@dataclass(frozen=True)
class HasId:
    """The item is one of these."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class All:
    """Every part holds; without parts, everything does."""

    parts: tuple[Where, ...]


@dataclass(frozen=True)
class Either:
    """At least one part holds; without parts, nothing does."""

    parts: tuple[Where, ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Where


Where = Match | Range | HasVector | HasId | All | Either | Not


def both(one: Where | None, other: Where | None) -> Where | None:
    """What satisfies two filters; None filters nothing."""
    parts = tuple(part for part in (one, other) if part is not None)
    return parts[0] if len(parts) == 1 else All(parts) if parts else None


def parse_where(stated: Mapping[str, Any]) -> Where:
    """A filter as users write it.

    Raises:
        RetrievalUsageError: Something in it has no meaning; the message says what is possible.
    """
    parts = tuple(_parse(key, value) for key, value in stated.items())
    return parts[0] if len(parts) == 1 else All(parts)


def _parse(key: str, value: Any) -> Where:
    match key:
        case "$and" | "$or":
            parts = tuple(parse_where(_mapping(key, part)) for part in _listed(key, value))
            return All(parts) if key == "$and" else Either(parts)
        case "$not":
            return Not(parse_where(_mapping(key, value)))
        case "$vector":
            return HasVector(str(value))
        case "$id":
            return HasId(
                tuple(str(id) for id in (_listed(key, value) if not isinstance(value, str) else [value]))
            )
    if key.startswith("$"):
        raise RetrievalUsageError(f"filter: no word {key!r}; possible: {', '.join(_JOINS)}, or a payload key")
    if not isinstance(value, Mapping):
        return _match(key, value)
    return _compare(key, value)


def _match(key: str, value: Any) -> Match:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not values or not all(isinstance(v, str | int) for v in values):
        raise RetrievalUsageError(
            f"filter {key!r}: found {value!r}; possible: a text, a whole number, true or false, a list of "
            f'these, or {{"$gte": number}} and the like for numbers'
        )
    return Match(key, values)


def _compare(key: str, words: Mapping[str, Any]) -> Where:
    wrong = [name for name in words if name not in _COMPARES]
    if wrong or not words:
        raise RetrievalUsageError(f"filter {key!r}: found {dict(words)!r}; possible: {', '.join(_COMPARES)}")
    bounds = {_BOUNDS[name]: _number(key, bound) for name, bound in words.items() if name in _BOUNDS}
    parts: list[Where] = [Range(key, **bounds)] if bounds else []
    for name, value in words.items():
        if name in ("$eq", "$in"):
            parts.append(_match(key, value))
        elif name in ("$ne", "$nin"):
            parts.append(Not(_match(key, value)))
    return parts[0] if len(parts) == 1 else All(tuple(parts))


def _number(key: str, bound: Any) -> float:
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise RetrievalUsageError(f"filter {key!r}: a bound is a number, found {bound!r}")
    try:
        return float(bound)
    except OverflowError:
        raise RetrievalUsageError(f"filter {key!r}: a bound has more than 308 digits; leave it out") from None


def _listed(key: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise RetrievalUsageError(f"filter {key!r} takes a list, found {value!r}")
    return value


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RetrievalUsageError(f"filter {key!r} takes a mapping, found {value!r}")
    return value


def holds(where: Where | None, id: str, payload: Mapping[str, Any], vectors: Sequence[str]) -> bool:
    """What a filter means, in plain Python: the reference that engines are tested against.

    Args:
        where: None holds for everything.
        id: Of the item.
        payload: Of the item.
        vectors: Names of the vectors that the item has.
    """
    match where:
        case None:
            return True
        case Match(key, values):
            return any(type(v) is type(w) and v == w for v in _values(payload, key) for w in values)
        case Range(key, gt, gte, lt, lte):
            return any(_within(v, gt, gte, lt, lte) for v in _values(payload, key))
        case HasVector(name):
            return name in vectors
        case HasId(ids):
            return id in ids
        case All(parts):
            return all(holds(part, id, payload, vectors) for part in parts)
        case Either(parts):
            return any(holds(part, id, payload, vectors) for part in parts)
        case Not(part):
            return not holds(part, id, payload, vectors)


def _values(payload: Mapping[str, Any], key: str) -> Iterator[Any]:
    value: Any = payload
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return
        value = value[name]
    yield from value if isinstance(value, list) else (value,)


def _within(value: Any, gt: float | None, gte: float | None, lt: float | None, lte: float | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    above = (gt is None or value > gt) and (gte is None or value >= gte)
    return above and (lt is None or value < lt) and (lte is None or value <= lte)
