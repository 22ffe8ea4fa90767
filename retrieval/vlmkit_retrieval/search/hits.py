"""What a search gives: hits, and why each of them is where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmkit_retrieval.types import Hit


@dataclass(frozen=True)
class Share:
    """What one list adds to a hit's score.

    Attributes:
        list: Name of the list, `SPACE:PART` (`clip:text`).
        weight: Weight of the list.
        rank: Place in the list from 1 on, or the imputed one (any number from 1 on); None where the list goes
            less far, or adds nothing.
        score: The list's own score of the item (see `Hit.score`); None where it is not in the list.
        share: What it adds to the hit's score.
        imputed: The item has no vector in the list's space, so its rank was concluded from other lists.
    """

    list: str
    weight: float
    rank: float | None
    score: float | None
    share: float
    imputed: bool = False

    def __str__(self) -> str:
        if self.imputed:
            concluded = "concluded from the other lists" if self.share else "adds nothing"
            where = f"as if at {self.rank:.1f}" if self.rank is not None else concluded
            return f"{self.list}: no vector there, {where}, +{self.share:.4f}"
        if self.score is None:
            return f"{self.list}: not found, +{self.share:.4f}"
        return f"{self.list}: rank {self.rank:g}, score {self.score:.4f}, +{self.share:.4f}"


@dataclass(frozen=True)
class Explanation:
    """Why a hit has its score and its place.

    Attributes:
        shares: One a list; they sum to the hit's score.
        fused: Whether the score was fused from several lists; else it is the only list's own score.
        nearest: With MMR, the largest cosine to a hit above this one; None for the first hit, for one without
            a vector to compare, and without MMR.
    """

    shares: tuple[Share, ...]
    fused: bool
    nearest: float | None = None

    def __str__(self) -> str:
        lines = [str(share) for share in self.shares]
        if self.nearest is not None:
            lines.append(f"mmr: cosine {self.nearest:.4f} to the hit above that is most like it")
        return "\n".join(lines)


@dataclass(frozen=True)
class Duplicate:
    """An item that a hit stands for.

    Attributes:
        id: The item's identifier.
        score: The score it had of its own.
        payload: What was stored with it.
        cosine: How near it is to the hit in the space that was compared; None for the same content.
    """

    id: str
    score: float
    payload: Mapping[str, Any]
    cosine: float | None = None


@dataclass(frozen=True)
class SearchHit(Hit):
    """A found item with its reasons.

    `score` is the list's own (a cosine, a sum of products) where one list was asked. Of several it is the sum
    of `weight / (60 + rank)` over the lists, or of their scores brought to 0 to 1: it orders the hits of one
    query, and means nothing beside the scores of another query.

    Attributes:
        explanation: Rank, score and share of each list.
        duplicates: Items that were collapsed into this one, best first.
    """

    explanation: Explanation
    duplicates: tuple[Duplicate, ...] = ()
