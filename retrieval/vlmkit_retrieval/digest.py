"""One hash of everything an engine stores: two indexes with the same one give the same answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from vlmkit_retrieval.types import Engine, Point, Terms, Vector


def digest(engine: Engine) -> str:
    """SHA-256 in hex over the spaces and all points in order of id: ids, vectors bit by bit, payloads."""
    found = hashlib.sha256(json.dumps(sorted(map(str, engine.spaces().items()))).encode())
    for point in engine.scroll():
        for piece in _pieces(point):
            found.update(len(piece).to_bytes(8, "big"))
            found.update(piece)
    return found.hexdigest()


def _pieces(point: Point) -> Iterator[bytes]:
    yield point.id.encode()
    yield json.dumps(point.payload, sort_keys=True, ensure_ascii=False).encode()
    for name in sorted(point.vectors):
        yield name.encode()
        yield _bytes(point.vectors[name])


def _bytes(vector: Vector) -> bytes:
    if isinstance(vector, Terms):
        weights = sorted(zip(vector.indices, vector.values, strict=True))
        return json.dumps([[index, float(np.float32(value))] for index, value in weights]).encode()
    return json.dumps(np.shape(vector)).encode() + np.ascontiguousarray(vector, "<f4").tobytes()
