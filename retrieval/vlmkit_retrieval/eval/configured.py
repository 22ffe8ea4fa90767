"""An index as it is to be measured: by certain encoders, with certain options, for every query of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vlmkit_retrieval.encoders import Encoder
from vlmkit_retrieval.eval.beir import Query
from vlmkit_retrieval.eval.exact import AgainstExact, against_exact
from vlmkit_retrieval.images import load_image, upright_rgb
from vlmkit_retrieval.search.asked import AskedSpace
from vlmkit_retrieval.search.hits import SearchHit
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.search.plan import list_names, weights_of
from vlmkit_retrieval.types import Dense, Vectors

if TYPE_CHECKING:
    from vlmkit_retrieval.index import Index


class Configured:
    """Searches an index in one way.

    Weights are stated for all queries at once, so one of a list that a single query has not (patches, for a
    text) is left out for that query. `plan` would refuse it.

    Args:
        index: An open index.
        encoders: Those to ask, of any kind.
        options: Of every search.

    Raises:
        RetrievalError: An encoder that did not fill the index.
    """

    def __init__(self, index: Index, encoders: Sequence[Encoder], options: SearchOptions) -> None:
        self._index, self._encoders, self._options = index, list(encoders), options
        self._spaces = index.asked_spaces(self._encoders)

    def search(
        self, text: str | None = None, image: Image.Image | None = None, *, k: int = 10
    ) -> list[SearchHit]:
        """The `k` best items, best first."""
        names = self._names(text is not None, image is not None)
        own = {name: weight for name, weight in self._options.weights.items() if _is_of(name, names)}
        options = replace(self._options, weights=own)
        return self._index.search(text, image, embedder=self._encoders, k=k, options=options)

    def lists(self, queries: Sequence[Query]) -> dict[str, float]:
        """The lists that any of these queries asks, and what each weighs.

        Raises:
            RetrievalUsageError: A weight is stated for a list that none of them asks.
        """
        names = [
            name for query in queries for name in self._names(query.text is not None, query.image is not None)
        ]
        return weights_of(list(dict.fromkeys(names)), self._options.weights)

    def against_exact(self, queries: Sequence[Query], k: int) -> AgainstExact:
        """What the approximate indexes of the spaces of one vector an item miss, for these queries."""
        asked = {name.rpartition(":")[0] for name, weight in self.lists(queries).items() if weight > 0}
        forms, engine = self._index.engine.spaces(), self._index.engine
        found = [
            against_exact(engine, space.pooled or space.name, _vectors(space, queries), k)
            for space in self._spaces
            if space.name in asked and isinstance(forms[space.pooled or space.name], Dense)
        ]
        columns = ("recall_Q", "milliseconds_Q", "exact_milliseconds_Q")
        return AgainstExact(
            *(np.concatenate([np.zeros(0), *(getattr(one, name) for one in found)]) for name in columns)
        )

    def _names(self, text: bool, image: bool) -> list[str]:
        return list_names(self._spaces, text, image, self._options)


def _vectors(space: AskedSpace, queries: Sequence[Query]) -> list[Vectors]:
    """What the engine is searched with: a vector for the text, one for the image; of patches, their mean."""
    found = []
    for query in queries:
        if query.text is not None and space.text is not None:
            found.append(space.text(query.text))
        if query.image is not None and space.image is not None:
            found.append(space.image(upright_rgb(load_image(query.image))))
    rows = [np.atleast_2d(np.asarray(vector, np.float32)).mean(axis=0) for vector in found]
    return [row_D / np.linalg.norm(row_D) for row_D in rows]


def _is_of(weighted: str, names: Sequence[str]) -> bool:
    """Whether a weight, of a list or of a space, is of one of these lists."""
    return any(weighted in (name, name.rpartition(":")[0]) for name in names)
