"""Mixtures: exact shares, no repeats before everything was shown, a function of seed and epoch."""

import itertools
import json
from collections import Counter
from fractions import Fraction

import pytest
from PIL import Image

from vlmkit.assemble import check_blocks
from vlmkit.data.formats.mixture import Mixture, Share, apportion, mixture
from vlmkit.errors import UsageError
from vlmkit.train.grouping import GroupedOrder
from vlmkit.train.schedule import Order, epoch_length, mixed


@pytest.fixture
def block(tmp_path):
    """A function: a data block of so many text rows, or rows with images."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def make(count, image=False):
        first = "<image>" if image else ""
        talk = [{"from": "human", "value": f"{first}q"}, {"from": "gpt", "value": "yes"}]
        rows = [
            {"id": i, "conversations": talk, **({"image": "a.png"} if image else {})} for i in range(count)
        ]
        path = tmp_path / f"{count}-{image}.json"
        path.write_text(json.dumps(rows))
        return {"type": "llava_json", "path": str(path), "image_folder": str(tmp_path)}

    return make


def sources(block, counts, weights=None, **options):
    named = zip("abcdef", counts, weights or itertools.repeat(None))
    return [
        {"name": name, "data": block(count), "weight": weight, **options} for name, count, weight in named
    ]


def quotas(samples):
    return [share.quota for share in samples.shares]


def test_without_weights_an_epoch_is_every_sample_once(block):
    samples = mixture(sources(block, [3, 5]))
    assert (len(samples), epoch_length(samples), quotas(samples)) == (8, 8, [3, 5])
    assert [s.id for s in samples] == [f"a/{i}" for i in range(3)] + [f"b/{i}" for i in range(5)]
    assert [s.source for s in samples] == ["a"] * 3 + ["b"] * 5
    assert sorted(mixed(samples.shares, 0, 4)) == list(range(8))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (10, [4, 6]),
        (7, [3, 4]),
        ("total", [8, 12]),
        ("first_exhausted", [6, 10]),
        ("all_exhausted", [10, 15]),
    ],
)
def test_lengths_of_an_epoch(block, epoch, expected):
    """10 samples with the share 0.4, and 10 with 0.6, or 15 where all are to be shown."""
    counts = [10, 15] if epoch == "all_exhausted" else [10, 10]
    assert quotas(mixture(sources(block, counts, [2, 3]), epoch)) == expected


def test_limits_are_of_a_source(block):
    given = [*sources(block, [9], [1], limit=2), {"name": "z", "data": block(4), "weight": 3, "limit": 99}]
    samples = mixture(given)
    assert [share.count for share in samples.shares] == [2, 4] and quotas(samples) == [2, 4]
    assert [s.id for s in samples] == ["a/0", "a/1", "z/0", "z/1", "z/2", "z/3"]


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.1, 0.2, 0.7], [5, 1e-3, 3.3], [2, 2, 1, 7, 0.5]])
@pytest.mark.parametrize("length", [1, 10, 97, 1000])
def test_shares_are_exact_to_rounding(weights, length):
    fractions = [Fraction(str(weight)) for weight in weights]
    found = apportion(fractions, length)
    assert sum(found) == length
    assert all(abs(n - w * length / sum(fractions)) < 1 for n, w in zip(found, fractions))


SHARES = [Share("a", 0, 4, 7), Share("b", 4, 10, 3), Share("c", 14, 5, 5)]


@pytest.mark.parametrize("seed", [0, 7])
def test_every_sample_comes_before_any_comes_again(seed):
    """Over epochs: of each source any stretch of a pass, wherever the epochs end, is all of its samples."""
    epochs = [mixed(SHARES, seed, epoch) for epoch in range(20)]
    for epoch in epochs:
        assert [sum(s.first <= i < s.first + s.count for i in epoch) for s in SHARES] == [7, 3, 5]
    for share in SHARES:
        own = [i for epoch in epochs for i in epoch if share.first <= i < share.first + share.count]
        passes = [own[i : i + share.count] for i in range(0, len(own) - share.count + 1, share.count)]
        assert all(sorted(p) == list(range(share.first, share.first + share.count)) for p in passes)
        assert len({tuple(p) for p in passes}) > len(passes) / 2
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    def stream(order, positions):
        return [order[i] for i in positions]

    positions = range(100)
    whole = stream(Order(19, 3, SHARES), positions)
    assert stream(Order(19, 3, SHARES), positions[42:]) == whole[42:]
    assert stream(Order(19, 3, SHARES), positions[::-1]) == whole[::-1]
    assert stream(Order(19, 4, SHARES), positions) != whole
    assert [epoch for epoch, _ in whole] == [i // 15 for i in positions]


def test_other_sources_do_not_change_what_comes_from_one():
    def own(shares, name):
        (share,) = [s for s in shares if s.name == name]
        drawn = [i for epoch in range(4) for i in mixed(shares, 0, epoch)]
        return [i - share.first for i in drawn if share.first <= i < share.first + share.count]

    alone = [Share("b", 0, 10, 3)]
    assert own(SHARES, "b") == own(alone, "b")
    assert own(SHARES, "b") != own([Share("x", 0, 10, 3)], "x")


@pytest.mark.parametrize("size", [1, 4, 6])
def test_grouping_keeps_the_shares(size):
    lengths = [(int(number < 14), number * 7 % 11) for number in range(19)]
    order = GroupedOrder(lengths, size, 0, SHARES)
    for epoch in range(6):
        found = [order[i] for i in range(epoch * 15, epoch * 15 + 15)]
        assert {e for e, _ in found} == {epoch}
        assert Counter(i for _, i in found) == Counter(mixed(SHARES, 0, epoch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "sources b have no weight and others do"),
        ({"name": "a"}, "need names, each its own; found a, a"),
        ({"weight": 1e-9}, "source 'b' has no sample in an epoch of 8: its share is too small"),
        ({"data": {"type": "mixture", "sources": []}}, "unknown data format of source 'b' 'mixture'"),
        ({"data": {"type": "lava_json"}}, "did you mean 'llava_json'"),
    ],
)
def test_mixtures_that_are_none(block, change, message):
    first, second = sources(block, [3, 5], [1, 2])
    with pytest.raises(UsageError, match=message):
        mixture([first, second | change])
    with pytest.raises(UsageError, match="each its own; found none"):
        mixture([])
    with pytest.raises(UsageError, match="epoch is 0; give 1 or more samples"):
        mixture([first, second], 0)


def test_a_recipe_is_checked_down_to_the_sources(block):
    def problems(**change):
        source = {"name": "a", "data": block(2), **change}
        return check_blocks({"stages": [{"data": {"type": "mixture", "sources": [source]}}]})

    assert problems() == []
    assert problems(data={"type": "llava_json", "path": "a"}) == [
        "stages.0.data.sources.0.data.image_folder: is missing"
    ]
    (found,) = problems(data={"type": "llava_jsn"})
    assert "stages.0.data.sources.0.data.type: unknown data format 'llava_jsn'" in found
    (found,) = problems(weight=-1)
    assert found.startswith("stages.0.data.sources.0.weight: ") and "greater than 0; found -1" in found
    (found,) = problems(wieght=1)
    assert found.startswith(
        "stages.0.data.sources.0.wieght: unknown key; did you mean 'weight'? (known: data, "
    )


def test_a_run_shows_the_shares_and_any_step_can_be_the_first(block, tmp_path, tiny_recipe, collating):
    from vlmkit.train.steps import StageData, Steps

    given = [
        {"name": "seen", "data": block(6, image=True), "weight": 3},
        {"name": "text", "data": block(5), "weight": 1, "limit": 4},
    ]
    data = {"type": "mixture", "sources": given, "epoch": 8}
    recipe = tiny_recipe(
        stages=[{"data": data, "epochs": 3, "steps": None, "batch_size": 3}], output=str(tmp_path / "run")
    )
    samples = mixture(given, 8)
    steps = Steps(recipe.stages[0], StageData(samples, collating(), recipe.seed), 0, 1)
    stream = [(s.id, epoch) for step in range(8) for batch in steps[step] for s, epoch in batch]
    again = Steps(recipe.stages[0], StageData(samples, collating(), recipe.seed), 0, 1)
    assert [(s.id, e) for step in range(5, 8) for b in again[step] for s, e in b] == stream[15:]
    for epoch in range(3):
        kinds = Counter(name.partition("/")[0] for name, e in stream if e == epoch)
        assert kinds == {"seen": 6, "text": 2}
    from vlmkit.train.run import train_recipe

    run = train_recipe(recipe).path
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8  # 3 epochs of 8 samples, 3 a step


def test_a_mixture_is_a_sequence_of_lazy_samples(block):
    samples = mixture(sources(block, [3, 5], [1, 1]))
    assert isinstance(samples, Mixture)
    assert [s.id for s in samples[2:5]] == ["a/2", "b/0", "b/1"] and samples[-1].id == "b/4"
    with pytest.raises(IndexError):
        samples[8]
