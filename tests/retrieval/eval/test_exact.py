"""An approximate engine against its own exact search: a fake that errs by a known amount."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit_retrieval.eval.exact import against_exact, neighbours_found
from vlmkit_retrieval.types import Hit


class ErringEngine:
    """Knows ten items by their score; an approximate search misses those whose number is in `missed`."""

    def __init__(self, missed=()):
        self.missed = set(missed)

    def search(self, name, query, k, *, exact=True):
        found = [n for n in range(10) if exact or n not in self.missed]
        return [Hit(str(n), 1 - n / 10, {}) for n in found][:k]


QUERIES = [np.ones(3, np.float32)] * 4


@pytest.mark.parametrize(("missed", "recall"), [((), 1.0), ((0,), 0.8), ((0, 3, 9), 0.6), (range(10), 0.0)])
def test_recall_is_the_share_of_exact_neighbours(missed, recall):
    found = against_exact(ErringEngine(missed), "v", QUERIES, 5)
    assert found.recall_Q.tolist() == [pytest.approx(recall)] * 4
    assert (found.milliseconds_Q > 0).all() and (found.exact_milliseconds_Q > 0).all()


def test_items_that_tie_with_the_last_one_are_as_good():
    truth = [Hit("a", 0.9, {}), Hit("b", 0.5, {})]
    assert neighbours_found([Hit("a", 0.9, {}), Hit("c", 0.5 - 1e-7, {})], truth) == 1.0
    assert neighbours_found([Hit("a", 0.9, {}), Hit("c", 0.5 - 1e-5, {})], truth) == 0.5
    # They do not make up for the one that is better.
    assert neighbours_found([Hit("b", 0.5, {}), Hit("c", 0.5, {}), Hit("d", 0.5, {})], truth) == 0.5
    assert neighbours_found([], []) == 1.0
