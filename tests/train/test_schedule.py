"""Rates and order are functions of the step alone."""

from itertools import pairwise

import pytest

from vlmkit.recipe import Stage
from vlmkit.train.schedule import Order, lr_factor, total_steps


def stage(**options):
    base = {"name": "s", "data": {"type": "x"}, "train": {"llm": {"lr": 1}}}
    return Stage.model_validate({**base, "steps": 10, "warmup": 0, **options})


def factors(steps=10, **options):
    return [lr_factor(stage(**options), step, steps) for step in range(steps)]


def test_warmup_rises_in_equal_parts_and_then_the_schedule_begins_at_one():
    assert factors(warmup=4, schedule="constant")[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert factors(warmup=4)[4] == 1.0


def test_warmup_below_one_is_a_share():
    assert factors(warmup=0.4) == factors(warmup=4)


def test_a_warmup_longer_than_the_stage_never_reaches_the_rate():
    assert factors(steps=3, warmup=30) == pytest.approx([1 / 30, 2 / 30, 3 / 30])


def test_cosine_and_linear_meet_in_the_middle_and_end_near_zero():
    cosine, linear = factors(schedule="cosine"), factors(schedule="linear")
    assert cosine[5] == pytest.approx(0.5) and linear == pytest.approx([1 - i / 10 for i in range(10)])
    assert cosine[0] == 1.0 and 0 < cosine[9] < linear[9]
    assert all(a > b for a, b in pairwise(cosine))


def test_epochs_become_steps_rounded_up():
    assert total_steps(stage(), 1000) == 10
    assert total_steps(stage(steps=None, epochs=2, batch_size=32), 100) == 7
    assert total_steps(stage(steps=None, epochs=0.01, batch_size=32), 100) == 1


def test_each_epoch_shows_every_sample_once_in_an_order_of_its_own():
    order = Order(7, seed=3)
    stream = [order[i] for i in range(21)]
    epochs = [[number for epoch, number in stream if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_the_same_from_any_place_on_and_differs_by_seed():
    whole, later = Order(7, seed=3), Order(7, seed=3)
    assert [whole[i] for i in range(21)][10:] == [later[i] for i in range(10, 21)]
    assert [Order(7, 3)[i] for i in range(7)] != [Order(7, 4)[i] for i in range(7)]
