"""Fusion, by ranks or by scores, of lists that cannot all hold every item.

An item at rank r of a list with weight w gets w / (60 + r) from it; the fused score is the sum over the lists
(Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009). By scores it gets w (s - low) / (high - low), where low and high are the list's last
and first score: how far the first one leads counts, so a list that is sure decides more, and one of small
weight only among near equals (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval",
ACM TOIS 2023, who find it better than ranks once weights are tuned).

Every list gives to what it holds, so an item without a vector in a list's space (an image without a caption
has no BM25 terms) falls behind items that were found no better where both can be.

What such an item would have is concluded by equipercentile equating, as test scores are where people sat
different parts of a test (Kolen and Brennan, "Test Equating, Scaling, and Linking", 2014). Its *peers* are
the candidates that could be in all lists that it could be in, and in more. All are ordered by what they have
in the lists of the item; if c peers are above it there, it gets a score that c peers are above of with all
their lists. So an image without a caption stands where the lists of images put it, and captions decide which
of the captioned images take the other places. Giving it its rank in the lists of images instead was measured
to bury the items with captions (docs/retrieval.md).

With fewer than `PEERS` peers in the item's own lists there is not enough to go by. Then its score is brought
to the scale of the lists it misses: times the larger of 1 and their weight over that of its own lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vlmkit_retrieval.search.hits import Share
from vlmkit_retrieval.types import Hit

# The constant of the paper: the first ranks differ little, so that one list alone does not decide.
K = 60
PEERS = 5
FuseBy = Literal["ranks", "scores"]
# Scores are compared to this many digits: sums of the same shares in another order are equal.
_DIGITS = 12


@dataclass(frozen=True)
class RankedList:
    """The hits of one list, best first.

    Attributes:
        name: Of the list.
        hits: At least one.
        weight: Above 0.
        lacking: Ids that are in other lists and have no vector in this one's space.
    """

    name: str
    hits: Sequence[Hit]
    weight: float = 1.0
    lacking: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fused:
    """An item of several lists: its score, and the share of each list in their order."""

    id: str
    score: float
    shares: tuple[Share, ...]


def fuse(lists: Sequence[RankedList], *, impute: bool = True, by: FuseBy = "ranks") -> list[Fused]:
    """Every item of the lists, best first.

    Equal scores: items with a concluded rank first (they must not fall behind by a tie), then by id.

    Args:
        lists: Lists of one query.
        impute: Conclude what items have in lists that they cannot be in; else they have 0 there.
        by: What of a list counts.
    """
    found = _found(lists, by)
    items = [Fused(id, _total(shares), shares) for id, shares in found.items()]
    if impute:
        items = _imputed(items, lists)
        if by == "scores":
            items = [_unranked(item) for item in items]
    return sorted(items, key=_order)


def _found(lists: Sequence[RankedList], by: FuseBy) -> dict[str, tuple[Share, ...]]:
    own_shares = [_shares(own, by) for own in lists]
    ids = dict.fromkeys(id for shares in own_shares for id in shares)
    none = [Share(own.name, own.weight, None, None, 0.0) for own in lists]
    return {id: tuple(shares.get(id, no) for shares, no in zip(own_shares, none, strict=True)) for id in ids}


def _shares(own: RankedList, by: FuseBy) -> dict[str, Share]:
    """What a list gives to what it holds."""
    high, low = own.hits[0].score, own.hits[-1].score

    def share(rank: int, score: float) -> float:
        if by == "ranks":
            return own.weight / (K + rank)
        return own.weight * (score - low) / (high - low) if high > low else own.weight

    return {
        hit.id: Share(own.name, own.weight, rank, hit.score, share(rank, hit.score))
        for rank, hit in enumerate(own.hits, 1)
    }


def _unranked(item: Fused) -> Fused:
    """Without concluded ranks, which shares of scores have none of."""
    shares = tuple(replace(share, rank=None) if share.imputed else share for share in item.shares)
    return replace(item, shares=shares)


def _total(shares: Sequence[Share]) -> float:
    return math.fsum(share.share for share in shares)


def _order(item: Fused) -> tuple[float, bool, float, str]:
    own = math.fsum(share.share for share in item.shares if not share.imputed)
    imputed = any(share.imputed for share in item.shares)
    return -round(item.score, _DIGITS), not imputed, -round(own, _DIGITS), item.id


def _imputed(items: Sequence[Fused], lists: Sequence[RankedList]) -> list[Fused]:
    """Those that miss fewest lists first: they are peers of those that miss these and more."""
    groups: dict[frozenset[int], list[Fused]] = {}
    for item in items:
        missing = frozenset(n for n, own in enumerate(lists) if item.id in own.lacking)
        groups.setdefault(missing, []).append(item)
    done: dict[frozenset[int], list[Fused]] = {}
    for missing in sorted(groups, key=lambda group: (len(group), sorted(group))):
        peers = [peer for other, own in done.items() if other < missing for peer in own]
        done[missing] = (
            [_completed(item, missing, peers) for item in groups[missing]] if missing else groups[missing]
        )
    return [item for group in done.values() for item in group]


def _completed(item: Fused, missing: frozenset[int], peers: Sequence[Fused]) -> Fused:
    """The item with what its missing lists would give, shared out by their weights."""
    heavy = math.fsum(item.shares[n].weight for n in missing)
    light = math.fsum(share.weight for share in item.shares) - heavy
    pairs = [(_without(peer, missing), peer.score) for peer in peers]
    score = _equated(item.score, pairs)
    if score is None:
        score = item.score * max(1.0, heavy / light)
    extra = max(0.0, score - item.score)
    rank = max(1.0, heavy / extra - K) if round(extra, _DIGITS) else None
    shares = [
        replace(share, rank=rank, share=extra * share.weight / heavy, imputed=True) if n in missing else share
        for n, share in enumerate(item.shares)
    ]
    return Fused(item.id, _total(shares), tuple(shares))


def _without(peer: Fused, missing: frozenset[int]) -> float:
    return math.fsum(share.share for n, share in enumerate(peer.shares) if n not in missing)


def _equated(own: float, peers: Sequence[tuple[float, float]]) -> float | None:
    """The score of the same standing among peers' scores, or None where too few have what can be compared.

    Args:
        own: What the item has in its own lists.
        peers: Of each peer what it has in these lists, and in all.
    """
    parts = sorted((part for part, _ in peers if part > 0), reverse=True)
    if len(parts) < PEERS:
        return None
    wholes = sorted((whole for _, whole in peers), reverse=True)
    if own > parts[0]:
        return wholes[0] + own - parts[0]
    # Below the last peer that the item's lists hold come those that other lists alone found.
    floor = wholes[len(parts)] if len(wholes) > len(parts) else 0.0
    return float(np.interp(own, [0.0, *reversed(parts)], [floor, *reversed(wholes[: len(parts)])]))
