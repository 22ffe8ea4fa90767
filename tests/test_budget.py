"""Token budgets: as few images as possible are made smaller, never cut off."""

import random

import pytest

from vlmkit.assemble import assemble
from vlmkit.budget import Budget, unlimited
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.inference import question
from vlmkit.plan import make_plan
from vlmkit.recipe import Recipe

LEVELS = {0: 100, 1: 60, 2: 60, 3: 20}


def by_level(image):
    """Wide images take twice the tokens; a level can change nothing."""
    width, height, level = image
    return LEVELS[min(level, 3)] * (2 if width > height else 1)


def test_without_limits_images_stay_as_they_are():
    sizes = [(10, 20), (30, 5)]
    assert Budget().fit(sizes, by_level, 3) == unlimited(sizes) == [(10, 20, 0), (30, 5, 0)]


def test_one_image_is_made_smaller_until_it_fits():
    assert Budget(per_image=100).fit([(10, 20), (30, 5)], by_level, 3) == [(10, 20, 0), (30, 5, 3)]
    assert Budget(per_image=120).fit([(30, 5)], by_level, 3) == [(30, 5, 1)]


def test_of_a_sample_the_largest_goes_first():
    sizes = [(10, 20), (30, 5), (10, 20)]
    assert Budget(per_sample=400).fit(sizes, by_level, 3) == unlimited(sizes)
    assert Budget(per_sample=399).fit(sizes, by_level, 3) == [(10, 20, 0), (30, 5, 1), (10, 20, 0)]
    assert [level for _, _, level in Budget(per_sample=200).fit(sizes, by_level, 3)] == [1, 3, 0]


@pytest.mark.parametrize("budget", [Budget(per_image=19), Budget(per_sample=59)])
def test_what_cannot_be_kept_is_said(budget):
    with pytest.raises(UsageError, match=r"may take (19|59) tokens and cannot take less than (20|60); "):
        budget.fit([(10, 20)] * 3, by_level, 3)


@pytest.mark.parametrize(
    "layout",
    [
        {"type": "native", "max_patches": 300},
        {"type": "longest", "longest_edge": 300},
        {"type": "qwen", "merge": 1, "min_pixels": 1},
        "anyres",
        "anyres_max",
        "tiles",
        "split",
    ],
)
def test_every_layout_of_many_tokens_keeps_a_budget(layout):
    spec = VisionSpec(32, 8, 4, layout=layout)

    def count(image):
        return sum(view.rows * view.cols for view in spec.features(image[:2], image[2]))

    draw = random.Random(0)
    for _ in range(50):
        sizes = [(draw.randint(3, 500), draw.randint(3, 500)) for _ in range(3)]
        most = draw.randint(60, 200)
        fitted = Budget(per_image=70, per_sample=most).fit(sizes, count, len(spec.chain) - 1)
        counts = [count(image) for image in fitted]
        assert max(counts) <= 70 and sum(counts) <= most
        assert [image[:2] for image in fitted] == sizes


def test_a_model_keeps_its_budget_and_stores_it(tiny_vlm, tiny_clip, noise, tmp_path):
    encoder = {**tiny_clip, "layout": "tiles"}
    recipe = {"encoder": encoder, "connector": {"pool": 1}}
    free = tiny_vlm(**recipe)
    assert free.count_tokens((100, 50)) > 100
    model = tiny_vlm(**recipe)
    model.config.image_tokens = {"per_image": 64, "per_sample": 96}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.processor.budget == Budget(64, 96)
    row = question([noise(1, (100, 50)), noise(2, (90, 30))], "say yes")
    batch = again.processor.prompts([row.conversation], [row.images])
    assert 32 < int((batch["input_ids"] == model.config.image_token_id).sum()) <= 96
    assert isinstance(again.ask(list(row.images), "say yes", max_new_tokens=2), str)


def test_a_budget_that_no_view_keeps_is_refused_before_the_first_image(tiny_recipe, tiny_clip):
    raw = tiny_recipe(encoder=tiny_clip, connector={"pool": 1}).model_dump()
    raw["model"]["image_tokens"] = {"per_image": 8}
    with pytest.raises(UsageError, match="may take 8 tokens and cannot take less than 16"):
        assemble(Recipe.model_validate(raw))


def test_plan_counts_within_the_budget(tiny_recipe, tiny_clip):
    raw = tiny_recipe(encoder={**tiny_clip, "layout": "tiles"}, connector={"pool": 1}).model_dump()
    free = make_plan(Recipe.model_validate(raw))
    raw["model"]["image_tokens"] = {"per_image": 64}
    kept = make_plan(Recipe.model_validate(raw))
    assert max(free.tokens.values()) > 64 >= max(kept.tokens.values())
    assert kept.stages[0].memory.total < free.stages[0].memory.total


def test_a_long_chain_is_followed_to_its_end():
    spec = VisionSpec(32, 8, 4, layout={"type": "tiles", "max_tiles": 150})
    assert len(spec.chain) > 100

    def count(image):
        return sum(view.rows * view.cols for view in spec.views(image[:2], image[2]))

    (fitted,) = Budget(per_image=16).fit([(640, 480)], count, len(spec.chain) - 1)
    assert count(fitted) == 16
