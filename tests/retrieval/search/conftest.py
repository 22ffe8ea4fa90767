from __future__ import annotations

import numpy as np
import pytest

from vlmkit_retrieval.types import Dense, Hit, Multi, Point, Sparse
from vlmkit_retrieval.where import holds


class ListEngine:
    """What a search needs of an `Engine`, over a list of points: filters by `holds`, scores as defined."""

    approximate = False

    def __init__(self, spaces, points):
        self._spaces = dict(spaces)
        self.points = {point.id: point for point in points}
        self.asked = []

    def spaces(self):
        return self._spaces

    def ids(self, where=None):
        return sorted(p.id for p in self.points.values() if holds(where, p.id, p.payload, list(p.vectors)))

    def retrieve(self, ids, with_vectors=False):
        found = {id: self.points[id] for id in ids if id in self.points}
        return found if with_vectors else {id: Point(id, {}, p.payload) for id, p in found.items()}

    def search(self, name, query, k, where=None, *, exact=True):
        self.asked.append((name, k, where, exact))
        allowed = [id for id in self.ids(where) if name in self.points[id].vectors]
        scores = {id: self._score(name, query, self.points[id].vectors[name]) for id in allowed}
        if isinstance(self._spaces[name], Sparse):
            scores = {id: score for id, score in scores.items() if score > 0}
        best = sorted(scores, key=lambda id: (-scores[id], id))[:k]
        return [Hit(id, scores[id], self.points[id].payload) for id in best]

    def _score(self, name, query, vector):
        match self._spaces[name]:
            case Dense():
                return float(unit(query) @ unit(vector))
            case Multi():
                return float((unit(query) @ unit(vector).T).max(axis=1).sum())
        weights = dict(zip(vector.indices, vector.values, strict=True))
        return sum(
            weight * weights.get(term, 0.0) * self._idf(name, term)
            for term, weight in zip(query.indices, query.values, strict=True)
        )

    def _idf(self, name, term):
        having = [p.vectors[name] for p in self.points.values() if name in p.vectors]
        n = sum(term in vector.indices for vector in having)
        return np.log(1 + (len(having) - n + 0.5) / (n + 0.5))


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def list_engine():
    return ListEngine
