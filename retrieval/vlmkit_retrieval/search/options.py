"""What can be set about a search besides the query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search.fusion import FuseBy

Compose = Literal["balanced", "lists", "mean", "slerp"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search; the defaults do what most want.

    Attributes:
        weights: Weight by list (`clip:text`) or by space (`bm25`); others have 1, and 0 leaves a list out.
        compose: What a text with an image becomes where one space embeds both: one vector between the two, in
            which both parts decide as much (`balanced`), on the straight line (`mean`), on the arc (`slerp`);
            or a list each (`lists`), which finds what is near to one of them.
        blend: The text's part of that vector, from 0 to 1.
        fuse: What of several lists counts: the ranks in them (reciprocal rank fusion), or the scores,
            those of each list brought to 0 to 1; by scores a small weight decides among near equals alone.
        impute: Conclude the rank of an item in lists whose space it has no vector in (see `fuse`).
        mmr: Part of relevance, from 0 to 1, against that of being unlike the hits above; None for no MMR.
        collapse: Show items of the same content once.
        near: With `collapse`, also those whose cosine is above this.
        by: The dense space in which items are compared; None for the first one asked that takes images, or
            else the first one asked.
        exact: Compare with every item even where the engine has an approximate index.

    Raises:
        RetrievalUsageError: A value that is not possible.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    compose: Compose = "balanced"
    blend: float = 0.5
    fuse: FuseBy = "ranks"
    impute: bool = True
    mmr: float | None = None
    collapse: bool = False
    near: float | None = None
    by: str | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise RetrievalUsageError(f"the weight of {name} is {weight}; it must be 0 or more")
        if self.compose not in get_args(Compose):
            possible = ", ".join(get_args(Compose))
            raise RetrievalUsageError(f"compose is {self.compose!r}; possible: {possible}")
        if self.fuse not in get_args(FuseBy):
            raise RetrievalUsageError(f"fuse is {self.fuse!r}; possible: {', '.join(get_args(FuseBy))}")
        for name, part in (("blend", self.blend), ("mmr", self.mmr)):
            if part is not None and not 0 <= part <= 1:
                raise RetrievalUsageError(f"{name} is {part}; it lies between 0 and 1")
        if self.near is not None and not -1 <= self.near <= 1:
            raise RetrievalUsageError(f"near is {self.near}; a cosine lies between -1 and 1")
        if self.near is not None and not self.collapse:
            raise RetrievalUsageError("near is set without collapse, which it belongs to; set both")

    @property
    def reorders(self) -> bool:
        """Whether hits are collapsed or moved once they are ranked, so that more than k are needed."""
        return self.collapse or self.mmr is not None
