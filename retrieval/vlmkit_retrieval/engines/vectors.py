"""Vectors as engines store them, checked a whole column at a time: Python does nothing number by number.

Shapes: N vectors of a block of items (in a multi space, of one item), D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Dense, Multi, Space, Sparse, Terms, Vector, Vectors

# A server refuses more numbers in one multivector; what other engines took could not be moved there.
MULTI_LIMIT = 1_048_576
# Vectors are made float64 for the check: so many at a time.
_BLOCK = 1024


def checked_vectors(
    ids: Sequence[str], vectors: Sequence[Mapping[str, Vector]], spaces: Mapping[str, Space]
) -> list[dict[str, Vector]]:
    """The vectors of some items at unit length, float32; sparse ones as they are.

    Args:
        ids: Of the items, for the message.
        vectors: Of each item, by name of their space.
        spaces: What the engine stores.

    Raises:
        RetrievalError: Unknown name, wrong shape, NaN, Inf, all zeros, or too large.
    """
    checked: list[dict[str, Vector]] = [{} for _ in ids]
    for name in dict.fromkeys(name for named in vectors for name in named):
        have = [number for number, named in enumerate(vectors) if name in named]
        owners = [f"item {ids[number]!r}" for number in have]
        column = _checked_column(owners, [vectors[number][name] for number in have], name, spaces)
        for number, vector in zip(have, column, strict=True):
            checked[number][name] = vector
    return checked


def checked_query(query: Vector, name: str, spaces: Mapping[str, Space]) -> Vector:
    """A query of a space, checked as stored vectors are; a sparse one may be empty."""
    if isinstance(query, Terms) and isinstance(spaces.get(name), Sparse) and not len(query.indices):
        return query
    return _checked_column(["the query"], [query], name, spaces)[0]


def complaint(rows_ND: NDArray[Any]) -> str:
    """Why no engine would store one of some vectors, or nothing: it has NaN or Inf, or points nowhere."""
    wide_ND = np.asarray(rows_ND, np.float64)
    bad_N = _without_length(_norms(wide_ND))
    return _complaint(wide_ND[int(bad_N.argmax())]) if bad_N.any() else ""


def numbers_in(vector: Vector) -> int:
    """How many numbers a vector has."""
    return 2 * len(vector.indices) if isinstance(vector, Terms) else vector.size


def _checked_column(
    owners: Sequence[str], vectors: Sequence[Vector], name: str, spaces: Mapping[str, Space]
) -> Sequence[Vector]:
    match spaces.get(name):
        case None:
            known = ", ".join(sorted(spaces)) or "none"
            raise RetrievalUsageError(f"{owners[0]}: no vector is named {name!r} (known: {known})")
        case Sparse():
            return [_checked_terms(owner, terms, name) for owner, terms in zip(owners, vectors, strict=True)]
        case Dense() | Multi() as space:
            arrays = [_array(*of, name) for of in zip(owners, vectors, strict=True)]
            check = _checked_dense if isinstance(space, Dense) else _checked_multi
            return check(owners, arrays, name, space.width)


def _checked_dense(
    owners: Sequence[str], arrays: Sequence[NDArray[Any]], name: str, width: int
) -> list[Vectors]:
    _check_shapes(owners, arrays, name, (width,))
    units: list[Vectors] = []
    for start in range(0, len(arrays), _BLOCK):
        block_ND = np.stack(arrays[start : start + _BLOCK])
        units.extend(_unit_rows(block_ND, owners[start : start + _BLOCK], name))
    return units


def _checked_multi(
    owners: Sequence[str], arrays: Sequence[NDArray[Any]], name: str, width: int
) -> list[Vectors]:
    _check_shapes(owners, arrays, name, (None, width))
    for owner, array in zip(owners, arrays, strict=True):
        if array.size > MULTI_LIMIT or not len(array):
            raise RetrievalError(
                f"{owner}: vector {name!r} has {len(array)} x {width} numbers, possible are 1 to "
                f"{MULTI_LIMIT:,}; pool its rows"
            )
    return [
        _unit_rows(rows_ND, [owner] * len(rows_ND), name)
        for owner, rows_ND in zip(owners, arrays, strict=True)
    ]


def _array(owner: str, vector: Vector, name: str) -> NDArray[Any]:
    if isinstance(vector, Terms):
        raise RetrievalError(f"{owner}: vector {name!r} is one of numbers, found terms; name a sparse space")
    return np.asarray(vector)


def _check_shapes(
    owners: Sequence[str], arrays: Sequence[NDArray[Any]], name: str, stored: tuple[int | None, ...]
) -> None:
    for owner, array in zip(owners, arrays, strict=True):
        if array.ndim != len(stored) or array.shape[-1] != stored[-1] or array.dtype.kind not in "fiu":
            shape = str(stored).replace("None", "N")
            raise RetrievalError(
                f"{owner}: vector {name!r} has shape {array.shape} of {array.dtype}, stored is {shape}; "
                "use the encoder the index was filled with"
            )


def _unit_rows(rows_ND: NDArray[Any], owners: Sequence[str], name: str) -> Vectors:
    """Each row at unit length, float32; what a row becomes does not depend on its company."""
    wide_ND = rows_ND.astype(np.float64)
    norms_N = _norms(wide_ND)
    bad_N = _without_length(norms_N)
    if bad_N.any():
        first = int(bad_N.argmax())
        raise RetrievalError(f"{owners[first]}: vector {name!r} {_complaint(wide_ND[first])}")
    # What is unit length up to rounding stays as it is, so that storing it again changes no bit.
    norms_N[np.abs(norms_N - 1.0) < 1e-6] = 1.0
    units_ND: Vectors = (wide_ND / norms_N[:, None]).astype(np.float32)
    return units_ND


def _norms(wide_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large or no number is told by its length
        norms_N: NDArray[np.float64] = np.sqrt((wide_ND * wide_ND).sum(1))
    return norms_N


def _without_length(norms_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    bad_N: NDArray[np.bool_] = ~np.isfinite(norms_N) | (norms_N == 0.0)
    return bad_N


def _complaint(vector_D: NDArray[np.float64]) -> str:
    if not np.isfinite(vector_D).all():
        return "has NaN or Inf; check the encoder's weights"
    if not vector_D.any():
        return "is all zeros, it points nowhere; check the encoder"
    return f"has numbers up to {np.abs(vector_D).max():.1e}, too extreme for a length; scale it"


def _checked_terms(owner: str, terms: Vector, name: str) -> Terms:
    if not isinstance(terms, Terms):
        raise RetrievalError(
            f"{owner}: vector {name!r} is sparse, found an array; give Terms(indices, values)"
        )
    indices, values = np.asarray(terms.indices), np.asarray(terms.values, np.float64)
    if indices.ndim != 1 or indices.shape != values.shape or not len(indices):
        raise RetrievalError(
            f"{owner}: vector {name!r} has {indices.size} terms with {values.size} weights; give as many of "
            "both, and leave the vector out where there are none"
        )
    if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= 2**32:
        raise RetrievalError(f"{owner}: vector {name!r}: a term is a whole number from 0 to {2**32 - 1}")
    if len(np.unique(indices)) != len(indices):
        raise RetrievalError(f"{owner}: vector {name!r} has a term twice; add up its weights")
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise RetrievalError(f"{owner}: vector {name!r} has NaN or Inf, or a weight that float32 cannot hold")
    order = indices.argsort()
    return Terms(indices[order].tolist(), values[order].astype(np.float32).tolist())
