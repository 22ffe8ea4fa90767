"""Queries made of an index's own vectors, and their exact neighbours.

Shapes: Q queries, D numbers of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlmkit_retrieval.types import Engine, Hit, Vectors
from vlmkit_retrieval.where import HasVector

# Cosine of a query that was moved to the vector it was made from.
NEAR = 0.9


@dataclass(frozen=True)
class Questions:
    """Queries of one space.

    Attributes:
        items: How many items have a vector in the space.
        ids: The item that each query was made from.
        vectors_QD: The queries.
        truth: The exact neighbours of each; empty before they are known.
    """

    items: int
    ids: Sequence[str]
    vectors_QD: Vectors
    truth: Sequence[Sequence[Hit]] = ()

    @classmethod
    def draw(cls, engine: Engine, name: str, count: int, seed: int = 0) -> Questions:
        """`count` different items, or all there are: every second one as it is, the others moved."""
        ids, draw = engine.ids(HasVector(name)), np.random.default_rng(seed)
        chosen = [ids[n] for n in draw.permutation(len(ids))[:count]]
        points = engine.retrieve(chosen, with_vectors=True)
        vectors_QD = np.array([points[id].vectors[name] for id in chosen], np.float32)
        vectors_QD[1::2] = _moved(vectors_QD[1::2], draw)
        return cls(len(ids), chosen, vectors_QD)

    def with_truth(self, truth: Sequence[Sequence[Hit]]) -> Questions:
        """The same with their exact neighbours."""
        return replace(self, truth=truth)

    def save(self, path: Path) -> None:
        """Write all of it; JSON gives a float32 back bit by bit."""
        truth = [[(hit.id, hit.score) for hit in hits] for hits in self.truth]
        rows = {
            "items": self.items,
            "ids": list(self.ids),
            "vectors": self.vectors_QD.tolist(),
            "truth": truth,
        }
        path.write_text(json.dumps(rows), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Questions:
        """Read what `save` wrote."""
        rows = json.loads(path.read_text("utf-8"))
        truth = [[Hit(id, score, {}) for id, score in hits] for hits in rows["truth"]]
        return cls(rows["items"], rows["ids"], np.array(rows["vectors"], np.float32), truth)


def _moved(vectors_QD: Vectors, draw: np.random.Generator) -> Vectors:
    """Each turned by a random angle-preserving noise: unit length, cosine `NEAR` to what it was."""
    noise_QD = draw.normal(size=vectors_QD.shape)
    along_Q1 = (noise_QD * vectors_QD).sum(1, keepdims=True)
    noise_QD -= along_Q1 * vectors_QD
    noise_QD /= np.linalg.norm(noise_QD, axis=1, keepdims=True).clip(1e-12)
    moved_QD: Vectors = (NEAR * vectors_QD + np.sqrt(1 - NEAR**2) * noise_QD).astype(np.float32)
    return moved_QD
