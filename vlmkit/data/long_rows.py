"""General packing: rows of several samples in one longer row, each as if it were alone.

Which rows come together is decided within a micro-batch, by its rows alone: there is no buffer that goes on
from step to step, and nothing of it to store.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from vlmkit.data.pack import PackedRow


def group_rows(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Few groups of rows whose lengths sum up to at most `most`, and as equal ones as can be had easily.

    First-fit decreasing says how many groups there are. As rows are padded to the longest one, they are then
    dealt out anew, the longest first and each to the group that has least, where no group gets too much.

    Args:
        lengths: Of each row.
        most: A row that is longer stays alone.

    Returns:
        Numbers of rows: in order within a group, and groups by their first row.
    """
    ordered = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    alone = [[i] for i in ordered if lengths[i] > most]
    groups = _first_fit(ordered[len(alone) :], lengths, most)
    equal = _dealt_out(ordered[len(alone) :], lengths, len(groups))
    if all(sum(lengths[i] for i in group) <= most for group in equal):
        groups = equal
    return sorted(sorted(group) for group in [*alone, *groups])


def _first_fit(ordered: Sequence[int], lengths: Sequence[int], most: int) -> list[list[int]]:
    """Each row into the first group with room: at most 11/9 of the fewest groups and one (Johnson 1973)."""
    groups: list[list[int]] = []
    room: list[int] = []
    for number in ordered:
        place = next((g for g, left in enumerate(room) if left >= lengths[number]), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(most)
        groups[place].append(number)
        room[place] -= lengths[number]
    return groups


def _dealt_out(ordered: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """So many groups, each row in the one that has the fewest tokens so far."""
    groups: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for number in ordered:
        place = load.index(min(load))
        groups[place].append(number)
        load[place] += lengths[number]
    return groups


def join_rows(rows: Sequence[PackedRow]) -> PackedRow:
    """Rows one after another: positions start anew with each, and no row predicts the next one's first token.

    Args:
        rows: At least one; a single one stays as it is.
    """
    if len(rows) == 1:
        return rows[0]
    return PackedRow(
        ids=tuple(chain.from_iterable(row.ids for row in rows)),
        weights=tuple(chain.from_iterable((0.0, *row.weights[1:]) for row in rows)),
        positions=tuple(chain.from_iterable(row.positions for row in rows)),
        branches=tuple(chain.from_iterable(row.branches for row in rows)),
        segments=tuple(k for k, row in enumerate(rows) for _ in row.ids),
    )
