"""General packing: rows of several samples in one longer row, each as if it were alone.

Which rows come together is decided within a micro-batch, by its rows alone: there is no buffer that goes on
from step to step, and nothing of it to store.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from vlmkit.data.pack import PackedRow


def first_fit(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Groups of rows whose lengths sum up to `most`, by first-fit decreasing (Johnson 1973).

    The longest row is placed first, each into the first group that has room; of equal rows the earlier one.
    It takes at most 11/9 of the fewest possible groups, and one.

    Args:
        lengths: Of each row.
        most: A row that is longer stays alone.

    Returns:
        Numbers of rows: in order within a group, and groups by their first row.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[number]
        place = next((g for g, left in enumerate(room) if left >= length), None)
        if place is None:
            groups.append([number])
            room.append(most - length)
        else:
            groups[place].append(number)
            room[place] -= length
    return sorted(sorted(group) for group in groups)


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
