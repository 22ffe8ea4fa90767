"""Grouped order: every sample once an epoch, batches of one modality and similar length, by the seed."""

import random
from itertools import pairwise

import pytest

from vlmkit.train.grouping import GroupedOrder, rough_length
from vlmkit.train.schedule import Order
from vlmkit.train.steps import StageData, Steps


def lengths(images, texts):
    """Shuffled (images, characters), of very different numbers of characters."""
    draw = random.Random(0)
    kinds = [1] * images + [0] * texts
    draw.shuffle(kinds)
    return [(kind, draw.randrange(1, 10_000)) for kind in kinds]


def batches(order, size, epochs):
    """Batches of the stream's first epochs, each with its (epoch, sample) items."""
    stream = [order[position] for position in range(order.samples * epochs)]
    return [stream[i : i + size] for i in range(0, len(stream), size)]


@pytest.mark.parametrize(("images", "texts"), [(70, 30), (64, 32), (101, 0), (0, 9), (5, 6), (1, 1), (3, 0)])
@pytest.mark.parametrize("size", [1, 4, 8, 200])
def test_each_epoch_shows_every_sample_once(images, texts, size):
    order = GroupedOrder(lengths(images, texts), size, seed=3)
    stream = [item for batch in batches(order, size, 5) for item in batch]
    epochs = [[number for epoch, number in stream if epoch == e] for e in range(5)]
    assert all(sorted(epoch) == list(range(images + texts)) for epoch in epochs)


@pytest.mark.parametrize(
    ("images", "texts", "most"), [(64, 32, 0), (70, 30, 1), (101, 7, 1), (85, 91, 1), (83, 88, 0)]
)
def test_batches_are_of_one_modality_but_for_the_left_over_ones(images, texts, most):
    all_lengths = lengths(images, texts)
    mixed = [0] * 6
    for batch in batches(GroupedOrder(all_lengths, 8, seed=3), 8, epochs=6):
        (first, *others), kinds = {e for e, _ in batch}, {all_lengths[number][0] for _, number in batch}
        mixed[first] += len(kinds) > 1 and len(batch) == 8 and not others
    assert max(mixed) == most


def test_lengths_in_a_batch_are_close():
    size, all_lengths = 8, lengths(400, 400)

    def spread(order):
        found = [[all_lengths[number][1] for _, number in batch] for batch in batches(order, size, 2)]
        return sum(max(own) - min(own) for own in found) / len(found)

    assert spread(GroupedOrder(all_lengths, size, 0)) < 0.3 * spread(Order(800, 0))


def test_the_order_is_the_same_from_any_place_on_and_differs_by_seed_and_epoch():
    made = [GroupedOrder(lengths(70, 30), 8, seed) for seed in (3, 3, 4)]
    streams = [[order[i] for i in range(start, 300)] for order, start in zip(made, (0, 130, 0), strict=True)]
    assert streams[0][130:] == streams[1]
    assert streams[0] != streams[2]
    epochs = [[number for epoch, number in streams[0] if epoch == e] for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_come_in_random_order():
    """Long after short half of the time, and the modalities mixed."""
    all_lengths = lengths(400, 400)
    firsts = [all_lengths[batch[0][1]] for batch in batches(GroupedOrder(all_lengths, 8, 0), 8, 1)]
    neighbours = list(pairwise(firsts))
    assert 0.3 < sum(one[1] < other[1] for one, other in neighbours) / len(neighbours) < 0.7
    assert 0.3 < sum(one[0] != other[0] for one, other in neighbours) / len(neighbours) < 0.7


def test_a_stage_groups_its_samples(make_stage, make_sample, collating):
    """Characters and images are counted from the samples; no image can be opened here."""
    samples = [make_sample(f"s{i}", 0, ("say " * (1 + i % 5), "yes")) for i in range(8)]
    broken = [make_sample(f"i{i}", 1, ("what?", "x" * i)) for i in range(8)]
    for sample in broken:
        object.__setattr__(sample, "images", (b"no image",))
    assert rough_length(samples[1]) == (0, 11) and rough_length(broken[2]) == (1, 7)
    names = collating(lambda items: [sample.id for sample, _ in items])
    data = StageData([*samples, *broken], names, seed=0)
    grouped = [Steps(make_stage(batch_size=4, group="modality_length"), data, 0, 1)[i][0] for i in range(8)]
    assert all(len({name[0] for name in ids}) == 1 for ids in grouped)
    plain = [Steps(make_stage(batch_size=4), data, 0, 1)[i][0] for i in range(8)]
    assert any(len({name[0] for name in ids}) == 2 for ids in plain)
