"""What both libraries give back, as points."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from vlmkit_retrieval.engines.checks import ID_KEY
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.types import Point, Terms, Vector


class Record(Protocol):
    """A stored row."""

    id: Any
    payload: Any
    vector: Any


class Scored(Record, Protocol):
    """A row that a search found."""

    score: float


def stored_id(record: Record) -> str:
    """The user's id of a stored row.

    Raises:
        RetrievalError: The row was written by something else.
    """
    if ID_KEY not in (record.payload or {}):
        raise RetrievalError(
            f"point {record.id} was not written by vlmkit; give vlmkit a collection or directory of its own"
        )
    return str(record.payload[ID_KEY])


def stored_payload(record: Record) -> dict[str, Any]:
    """The user's payload of a stored row."""
    return {key: value for key, value in record.payload.items() if key != ID_KEY}


def to_point(record: Record) -> Point:
    """A stored row as the user gave it."""
    vectors = {name: _vector(vector) for name, vector in (record.vector or {}).items()}
    return Point(stored_id(record), vectors, stored_payload(record))


def _vector(stored: Any) -> Vector:
    if hasattr(stored, "indices"):  # each library has a class of its own for sparse vectors
        return Terms(list(stored.indices), list(stored.values))
    return np.array(stored, np.float32)
