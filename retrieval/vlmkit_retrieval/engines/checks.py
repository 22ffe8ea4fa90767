"""What every engine refuses before it writes anything: ids, payloads, and rows of both with vectors."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmkit_retrieval.engines.vectors import checked_vectors, numbers_in
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Point, Space, Vector

# Qdrant stores integers and UUIDs as ids, users have strings: the string travels in the payload under this
# key.
ID_KEY = "_vlmkit_id"
_NAMESPACE = uuid.UUID("8f2f5a04-2a0b-5b0e-9a36-6c1d3b1f7d55")
_INT64 = 2**63
# Payloads checked at once: fast, and the interpreter is free for other threads in between.
_BLOCK = 1024


@dataclass(frozen=True)
class Row:
    """A checked point, ready to be stored.

    Attributes:
        id: As Qdrant wants it.
        vectors: By name; of unit length.
        payload: With the user's id in it; empty where only vectors are written.
    """

    id: str
    vectors: dict[str, Vector]
    payload: dict[str, Any]

    def numbers(self) -> int:
        """How many numbers the vectors have: what a row costs to write."""
        return sum(map(numbers_in, self.vectors.values()))


def to_uuid(id: str) -> str:
    """The identifier under which an engine stores the user's `id`.

    Raises:
        RetrievalError: The id has half of a surrogate pair, as a file name that is not UTF-8 has.
    """
    try:
        return str(uuid.uuid5(_NAMESPACE, id))
    except UnicodeEncodeError:
        raise RetrievalError(f"id {id!r} is no text that UTF-8 can hold; give another one") from None


def checked_rows(points: Sequence[Point], spaces: Mapping[str, Space]) -> list[Row]:
    """Check a whole call, so that a bad point at its end leaves nothing half written.

    Raises:
        RetrievalError: A duplicate id, a payload that is not JSON, or a vector `checked_vectors` refuses.
    """
    ids = [point.id for point in points]
    _check_unique(ids)
    payloads = checked_payloads(ids, [point.payload for point in points])
    vectors = checked_vectors(ids, [point.vectors for point in points], spaces)
    rows = []
    for id, payload, named in zip(ids, payloads, vectors, strict=True):
        payload[ID_KEY] = id
        rows.append(Row(to_uuid(id), named, payload))
    return rows


def checked_updates(vectors: Mapping[str, Mapping[str, Vector]], spaces: Mapping[str, Space]) -> list[Row]:
    """Rows of vectors alone, for items that exist."""
    ids = list(vectors)
    checked = checked_vectors(ids, list(vectors.values()), spaces)
    return [Row(to_uuid(id), named, {}) for id, named in zip(ids, checked, strict=True) if named]


def checked_payloads(ids: Sequence[str], payloads: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The payloads as an engine gives them back: tuples are lists.

    Args:
        ids: Whose they are, for the message.
        payloads: As many.

    Raises:
        RetrievalError: Not JSON, a reserved key, or a whole number of more than 64 bits.
    """
    stored: list[dict[str, Any]] = []
    for start in range(0, len(ids), _BLOCK):
        block = [dict(payload) for payload in payloads[start : start + _BLOCK]]
        try:
            stored += _through_json(block)
        except (TypeError, ValueError, RecursionError):
            for id, payload in zip(ids[start:], block, strict=False):  # one by one says which
                _check_payload(id, payload)
            raise
    for id, payload in zip(ids, stored, strict=True):
        if ID_KEY in payload:
            raise RetrievalError(f"item {id!r}: payload key {ID_KEY!r} is reserved; rename it")
    return stored


def _check_payload(id: str, payload: dict[str, Any]) -> None:
    try:
        _through_json(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise RetrievalError(f"item {id!r}: payload is not JSON ({error}); use plain values") from error


def _through_json(value: Any) -> Any:
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode()  # a lone surrogate (a file name that is not UTF-8) is refused here, by a ValueError too
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int:
    value = int(digits)
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"{digits} does not fit into 64 bits")
    return value


def checked_k(k: int) -> int:
    """`k`, which must be at least 1."""
    if k < 1:
        raise RetrievalUsageError(f"k is {k}; ask for at least 1 hit")
    return k


def _check_unique(ids: Collection[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise RetrievalError(f"id {id!r} occurs twice in one call; give every item its own id")
        seen.add(id)
