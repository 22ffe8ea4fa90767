"""Ask an engine for lists, fuse them, and order what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.images import upright_rgb
from vlmkit_retrieval.search.asked import AskedSpace
from vlmkit_retrieval.search.compose import SAMPLE, balanced, composed
from vlmkit_retrieval.search.fusion import RankedList, fuse
from vlmkit_retrieval.search.hits import Explanation, SearchHit, Share
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.search.plan import PlannedList, plan
from vlmkit_retrieval.search.similar import collapse, diversify
from vlmkit_retrieval.types import Dense, Engine, Hit, Vector, Vectors
from vlmkit_retrieval.where import HasId, HasVector, Where, both, parse_where

# What a list that is fused goes to: far enough that an item which two lists know is found in both.
DEPTH, DEPTH_PER_HIT = 50, 4
# So many items come from a pooled space to be compared by MaxSim.
POOLED = 100
_DEFAULT = SearchOptions()


class Searcher:
    """Searches the spaces of one engine by text, by image, or by both.

    Args:
        engine: An open engine.
        spaces: Which of its spaces to ask, and how; a part of a query goes to those that take it.

    Raises:
        RetrievalUsageError: No space, or the same one twice.
    """

    def __init__(self, engine: Engine, spaces: Sequence[AskedSpace]) -> None:
        names = [space.name for space in spaces]
        if not names or len(set(names)) < len(names):
            raise RetrievalUsageError(f"spaces to ask: {', '.join(names) or 'none'}; name each one once")
        self._engine = engine
        self._spaces = list(spaces)

    def search(
        self,
        text: str | None = None,
        image: Image.Image | None = None,
        *,
        k: int = 10,
        where: Where | Mapping[str, Any] | None = None,
        options: SearchOptions = _DEFAULT,
    ) -> list[SearchHit]:
        """The `k` best items, best first, each with its explanation.

        One list is given as the engine ranks it. Several are fused (see `fuse`). Then copies are collapsed,
        and hits are diversified, where the options say so.

        Args:
            text: What to search for in words.
            image: What to search for as a picture; with a text, what both are like.
            k: At most so many.
            where: Only items that it lets through, as a filter or as `parse_where` reads it.
            options: Everything else.

        Raises:
            RetrievalUsageError: What `plan` refuses, `k` below 1, or a space without the vectors asked for.
        """
        if k < 1:
            raise RetrievalUsageError(f"k is {k}; at least 1 is needed")
        picture = upright_rgb(image) if image is not None else None
        allowed = parse_where(where) if isinstance(where, Mapping) else where
        between = partial(self._between, where=allowed, options=options)
        asked = plan(self._spaces, text, picture, options, between)
        depth = max(DEPTH, DEPTH_PER_HIT * k) if len(asked) > 1 or options.reorders else k
        while True:
            found = [self._list(own, depth, allowed, options) for own in asked]
            hits = self._finish(self._ranked(asked, found, options), k, options)
            # Copies took the places of others: look further, as long as there is something further.
            if len(hits) >= k or not options.collapse or all(len(own) < depth for own in found):
                return hits
            depth *= 4

    def _list(self, own: PlannedList, depth: int, where: Where | None, options: SearchOptions) -> list[Hit]:
        if own.pooled is not None:
            query = self._pooled_query(own.pooled, own.query)
            coarse = self._engine.search(
                own.pooled, query, max(POOLED, depth), where, exact=self._exact(options)
            )
            where = both(where, HasId(tuple(hit.id for hit in coarse)))
        return self._engine.search(own.space, own.query, depth, where, exact=self._exact(options))

    def _between(
        self, space: str, text_D: Vectors, image_D: Vectors, where: Where | None, options: SearchOptions
    ) -> Vectors:
        if options.compose != "balanced":
            return composed(text_D, image_D, options.compose, options.blend)
        found = [
            hit.id
            for query_D in (text_D, image_D)
            for hit in self._engine.search(space, query_D, SAMPLE, where, exact=self._exact(options))
        ]
        points = self._engine.retrieve(sorted(set(found)), with_vectors=True).values()
        rows_ND = np.array([point.vectors[space] for point in points], np.float32)
        return balanced(text_D, image_D, rows_ND, options.blend)

    def _exact(self, options: SearchOptions) -> bool:
        return options.exact or not self._engine.approximate

    def _pooled_query(self, pooled: str, query: Vector) -> Vector:
        """The query's vectors, or their mean where the pooled space has one vector an item."""
        if not isinstance(self._engine.spaces().get(pooled), Dense):
            return query
        mean_D = np.asarray(query).mean(axis=0)
        return np.asarray(mean_D / np.linalg.norm(mean_D), np.float32)

    def _ranked(
        self, asked: Sequence[PlannedList], found: Sequence[list[Hit]], options: SearchOptions
    ) -> list[SearchHit]:
        if len(asked) == 1:
            return [_alone(asked[0], rank, hit) for rank, hit in enumerate(found[0], 1)]
        hits = {hit.id: hit for own in found for hit in own}
        # A list that found nothing says nothing about anything.
        lists = [
            RankedList(plan.name, own, plan.weight, self._lacking(plan.space, own, hits))
            for plan, own in zip(asked, found, strict=True)
            if own
        ]
        return [
            SearchHit(item.id, item.score, hits[item.id].payload, Explanation(item.shares, fused=True))
            for item in fuse(lists, impute=options.impute, by=options.fuse)
        ]

    def _lacking(self, space: str, own: Sequence[Hit], hits: Mapping[str, Hit]) -> frozenset[str]:
        """Ids of other lists without a vector in this space: one look-up by id, in the engine itself."""
        others = set(hits).difference(hit.id for hit in own)
        if not others:
            return frozenset()
        having = self._engine.ids(both(HasId(tuple(sorted(others))), HasVector(space)))
        return frozenset(others.difference(having))

    def _finish(self, hits: list[SearchHit], k: int, options: SearchOptions) -> list[SearchHit]:
        compares = options.mmr is not None or options.near is not None
        vectors = self._vectors(hits, options.by) if compares else {}
        if options.collapse:
            hits = collapse(hits, vectors, options.near)
        if options.mmr is not None:
            return diversify(hits, vectors, options.mmr, k)
        return hits[:k]

    def _vectors(self, hits: Sequence[SearchHit], by: str | None) -> dict[str, Vectors]:
        dense = [name for name, space in self._engine.spaces().items() if isinstance(space, Dense)]
        # Of images first: two pictures with the same caption are no copies.
        asked = sorted(self._spaces, key=lambda space: space.image is None)
        name = by or next((space.name for space in asked if space.name in dense), None)
        if name is None or name not in dense:
            raise RetrievalUsageError(
                f"items are to be compared in space {name!r}; spaces of one vector an item: "
                f"{', '.join(dense) or 'none'}"
            )
        points = self._engine.retrieve([hit.id for hit in hits], with_vectors=True)
        found = {id: point.vectors[name] for id, point in points.items() if name in point.vectors}
        return {id: _unit(vector) for id, vector in found.items()}


def _alone(own: PlannedList, rank: int, hit: Hit) -> SearchHit:
    share = Share(own.name, own.weight, rank, hit.score, hit.score)
    return SearchHit(hit.id, hit.score, hit.payload, Explanation((share,), fused=False))


def _unit(vector: Vector) -> Vectors:
    row_D = np.asarray(vector, np.float32)
    return np.asarray(row_D / np.linalg.norm(row_D), np.float32)
