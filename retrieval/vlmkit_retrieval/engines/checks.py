"""What every engine refuses before it writes anything, and how ids and scores are made comparable."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Hit, Point, Vectors

# Qdrant stores integers and UUIDs as ids, users have strings: the string travels in the payload under this
# key.
ID_KEY = "_vlmkit_id"
_NAMESPACE = uuid.UUID("8f2f5a04-2a0b-5b0e-9a36-6c1d3b1f7d55")


@dataclass(frozen=True)
class Row:
    """A checked point, ready to be stored: `id` as Qdrant wants it, `payload` with the user's id in it."""

    id: str
    vectors: dict[str, Vectors]
    payload: dict[str, Any]


def to_uuid(id: str) -> str:
    """The identifier under which an engine stores the user's `id`."""
    return str(uuid.uuid5(_NAMESPACE, id))


def checked_rows(points: Sequence[Point], widths: Mapping[str, int]) -> list[Row]:
    """Check a whole batch, so that a bad point at its end leaves nothing half written.

    Raises:
        RetrievalError: A duplicate id, a payload that is not JSON, or a vector `checked_vector` refuses.
    """
    seen: set[str] = set()
    rows = []
    for point in points:
        if point.id in seen:
            raise RetrievalError(f"id {point.id!r} occurs twice in one batch; give every item its own id")
        seen.add(point.id)
        rows.append(_checked_row(point, widths))
    return rows


def _checked_row(point: Point, widths: Mapping[str, int]) -> Row:
    if not point.vectors:
        raise RetrievalError(f"item {point.id!r} has no vector; give it at least one of: {_names(widths)}")
    vectors = {
        name: checked_vector(vector, name, widths, f"item {point.id!r}")
        for name, vector in point.vectors.items()
    }
    return Row(to_uuid(point.id), vectors, {**_checked_payload(point), ID_KEY: point.id})


def _checked_payload(point: Point) -> dict[str, Any]:
    if ID_KEY in point.payload:
        raise RetrievalError(f"item {point.id!r}: payload key {ID_KEY!r} is reserved; rename it")
    try:
        text = json.dumps(dict(point.payload), allow_nan=False, ensure_ascii=False)
        text.encode()  # a lone surrogate (a file name that is not UTF-8) is refused here, by a ValueError too
    except (TypeError, ValueError) as error:
        raise RetrievalError(f"item {point.id!r}: payload is not JSON ({error}); use plain values") from error
    payload: dict[str, Any] = json.loads(text)  # tuples become lists here, as they do in every engine
    return payload


def checked_vector(vector: Vectors, name: str, widths: Mapping[str, int], whose: str) -> Vectors:
    """The vector at unit length, float32, of shape (width,).

    Args:
        vector: Any real vector; its length does not matter.
        name: Which named vector it is.
        widths: Width by name of what the engine stores.
        whose: Start of the message, e.g. `item 'a.png'` or `the query`.

    Raises:
        RetrievalError: Unknown name, wrong width, NaN, Inf or all zeros.
    """
    if name not in widths:
        raise RetrievalUsageError(f"{whose}: no vector is named {name!r} (known: {_names(widths)})")
    wide = np.asarray(vector, dtype=np.float64)
    if wide.shape != (widths[name],):
        raise RetrievalError(
            f"{whose}: vector {name!r} has shape {wide.shape}, stored is ({widths[name]},); "
            "use the encoder the index was filled with"
        )
    if not np.isfinite(wide).all():
        raise RetrievalError(f"{whose}: vector {name!r} has NaN or Inf; check the encoder's weights")
    norm = float(np.linalg.norm(wide))
    if norm == 0.0:
        raise RetrievalError(f"{whose}: vector {name!r} is all zeros, it points nowhere; check the encoder")
    # A vector that is unit length up to rounding stays as it is, so that storing it again changes no bit.
    return (wide if abs(norm - 1.0) < 1e-6 else wide / norm).astype(np.float32)


def checked_k(k: int) -> int:
    """`k`, which must be at least 1."""
    if k < 1:
        raise RetrievalUsageError(f"k is {k}; ask for at least 1 hit")
    return k


def ranked(query: Vectors, candidates: Iterable[Point], name: str, k: int) -> list[Hit]:
    """The `k` best candidates by cosine, equal scores in order of id.

    Scores are computed again, row by row in float64: engines add in different orders, so that equal vectors
    get scores that differ in the last bit, and the order of ties would depend on the engine.
    """
    hits = [Hit(point.id, _cosine(query, point.vectors[name]), point.payload) for point in candidates]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]


def _cosine(query: Vectors, vector: Vectors) -> float:
    return float(np.clip((query.astype(np.float64) * vector.astype(np.float64)).sum(), -1.0, 1.0))


def _names(widths: Mapping[str, int]) -> str:
    return ", ".join(sorted(widths)) or "none"
