"""Prefix packing: all conversations about the same images in one row, behind one copy of what they share.

The attention rule is: token i may look at token j iff j <= i and branch[j] is 0 or branch[i]. With positions
that restart at the prefix length, each conversation's logits are those of its own unpacked row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmkit.data.tokens import TokenRow


@dataclass(frozen=True)
class PackedRow:
    """One row of a batch.

    Attributes:
        ids: Token ids.
        weights: Loss weights; 0 = not supervised.
        positions: Position of each token within its own conversation.
        branches: 0 for the shared prefix, k >= 1 for the k-th conversation's rest.
        segments: Which of the rows that were laid into this one, from 0; empty where it is one row alone.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    segments: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.weights) == len(self.positions) == len(self.branches)
        assert len(self.segments) in (0, len(self.ids))


def pack_prefix(rows: Sequence[TokenRow]) -> PackedRow:
    """Pack rows behind their longest common unsupervised prefix.

    A single row is all prefix (branch 0), which is plain causal attention.

    Args:
        rows: At least one, none empty.
    """
    assert rows and all(row.ids for row in rows)
    if len(rows) == 1:
        (row,) = rows
        return PackedRow(row.ids, row.weights, tuple(range(len(row.ids))), (0,) * len(row.ids))
    start = _prefix_length(rows)
    ids, weights = list(rows[0].ids[:start]), [0.0] * start
    positions, branches = list(range(start)), [0] * start
    for k, row in enumerate(rows, 1):
        ids += row.ids[start:]
        # A branch's first token is never supervised: in the row another branch stands before it, so nothing
        # predicts it. Where that costs a weight (no prefix, and the very first token supervised) nothing
        # predicts it unpacked either.
        weights += (0.0, *row.weights[start + 1 :])
        positions += range(start, len(row.ids))
        branches += [k] * (len(row.ids) - start)
    return PackedRow(tuple(ids), tuple(weights), tuple(positions), tuple(branches))


def _prefix_length(rows: Sequence[TokenRow]) -> int:
    """Tokens that all rows share, such that each branch has at least one and starts with an unsupervised one.

    Labels are shifted by one when the loss is taken: the token before a label must be the one that predicts
    it. That fails at the start of every branch but the first, so the last token before a row's first label
    stays in its branch.
    """
    shared = 0
    for tokens in zip(*(row.ids for row in rows)):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return min(shared, *(_first_supervised(row) - 1 for row in rows))


def _first_supervised(row: TokenRow) -> int:
    """Index of the first supervised token, at least 1; the length where there is none."""
    return max(1, next((i for i, weight in enumerate(row.weights) if weight), len(row.ids)))
