"""Cut a long list of work into pieces of bounded cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def cut(items: Iterable[Item], cost: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Consecutive pieces whose cost is at most `limit`; an item that costs more is a piece of its own.

    Args:
        items: In order.
        cost: Of an item.
        limit: Of a piece.
    """
    piece: list[Item] = []
    total = 0
    for item in items:
        price = cost(item)
        if piece and total + price > limit:
            yield piece
            piece, total = [], 0
        piece.append(item)
        total += price
    if piece:
        yield piece
