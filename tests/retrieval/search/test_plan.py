"""Which lists a query becomes, and what is between a text and an image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search.asked import AskedSpace, image_space, patch_space, term_space, text_space
from vlmkit_retrieval.search.compose import balanced, composed
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.search.plan import plan as planned
from vlmkit_retrieval.types import Terms

LISTS = SearchOptions(compose="lists")
PICTURE = Image.new("RGB", (4, 4), (0, 0, 255))


class Words:
    """Terms by their first letter."""

    fingerprint = "first-letters"

    def embed_query(self, text):
        letters = sorted({ord(word[0]) for word in text.split() if word != "the"})
        return Terms(letters, [1.0] * len(letters))


def plan(spaces, text, image, options=LISTS):
    def between(space, text_D, image_D):
        return composed(text_D, image_D, options.compose, options.blend)

    return planned(spaces, text, image, options, between)


@pytest.fixture
def spaces(colours, grey):
    return [
        image_space("colour", colours),
        image_space("grey", grey, text=False),
        text_space("captions", colours),
        term_space("bm25", Words()),
    ]


def names(lists):
    return [own.name for own in lists]


def test_each_part_of_a_query_goes_where_it_can(spaces):
    options = LISTS
    assert names(plan(spaces, "red", None, options)) == ["colour:text", "captions:text", "bm25:text"]
    assert names(plan(spaces, None, PICTURE, options)) == ["colour:image", "grey:image"]
    assert names(plan(spaces, "red", PICTURE, options)) == [
        "colour:text",
        "colour:image",
        "grey:image",
        "captions:text",
        "bm25:text",
    ]


def test_a_vector_is_the_encoders_own(spaces, colours):
    lists = plan(spaces, "red", PICTURE)
    np.testing.assert_array_equal(lists[0].query, colours.embed_text(["red"])[0])
    np.testing.assert_array_equal(lists[1].query, colours.embed_images([PICTURE])[0])
    assert lists[4].query == Terms([ord("r")], [1.0])


@pytest.mark.parametrize("how", ["mean", "slerp"])
def test_composed_where_one_space_takes_both(spaces, colours, how):
    lists = plan(spaces, "red", PICTURE, SearchOptions(compose=how, blend=0.25))
    assert names(lists) == ["colour:both", "grey:image", "captions:text", "bm25:text"]
    text, image = colours.embed_text(["red"])[0], colours.embed_images([PICTURE])[0]
    np.testing.assert_array_equal(lists[0].query, composed(text, image, how, 0.25))


def test_patches_are_never_composed():
    patches = patch_space("patches", "pooled", lambda text: np.eye(3), lambda image: np.eye(3))
    lists = plan([patches], "red", PICTURE, SearchOptions(compose="slerp"))
    assert names(lists) == ["patches:text", "patches:image"]
    assert lists[0].pooled == "pooled"


def test_weights_of_spaces_and_of_lists(spaces):
    options = SearchOptions(compose="lists", weights={"colour": 3, "colour:image": 0, "bm25": 0.5})
    lists = plan(spaces, "red", PICTURE, options)
    assert {own.name: own.weight for own in lists} == {
        "colour:text": 3,
        "grey:image": 1,
        "captions:text": 1,
        "bm25:text": 0.5,
    }


def test_a_list_of_weight_0_embeds_nothing(spaces, colours):
    plan(spaces, "red", PICTURE, SearchOptions(weights={"colour": 0}))
    assert colours.batches == []


def test_a_query_of_stop_words_alone_asks_no_terms(spaces):
    assert names(plan(spaces, "the", None, SearchOptions())) == ["colour:text", "captions:text"]


@pytest.mark.parametrize(
    ("text", "image", "weights", "message"),
    [
        (None, None, {}, "a text, an image, or both"),
        (" \n", None, {}, "text is empty"),
        ("red", None, {"clip": 1}, r"'clip'; lists of this query: colour:text, .*bm25"),
        ("red", None, {"grey": 1}, "'grey'; lists"),
        (None, PICTURE, {"colour": 0, "grey": 0}, "every list has weight 0"),
    ],
)
def test_what_cannot_be_planned(spaces, text, image, weights, message):
    with pytest.raises(RetrievalUsageError, match=message):
        plan(spaces, text, image, SearchOptions(weights=weights))


def test_a_part_that_no_space_takes_is_not_dropped(spaces):
    with pytest.raises(RetrievalUsageError, match=r"takes text queries \(asked by image: grey\)"):
        plan(spaces[1:2], "red", PICTURE, SearchOptions())
    with pytest.raises(RetrievalUsageError, match=r"takes image queries \(asked by text: captions, bm25\)"):
        plan(spaces[2:], "red", PICTURE, SearchOptions())
    with pytest.raises(RetrievalUsageError, match="none"):
        plan([AskedSpace("dead")], "red", None, SearchOptions())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": {"a": -1}}, "weight of a is -1"),
        ({"weights": {"a": float("nan")}}, "weight of a is nan"),
        ({"compose": "sum"}, "possible: balanced, lists, mean, slerp"),
        ({"blend": 1.5}, "blend is 1.5"),
        ({"mmr": -0.1}, "mmr is -0.1"),
        ({"near": 2.0, "collapse": True}, "near is 2.0"),
        ({"near": 0.9}, "without collapse"),
    ],
)
def test_options_that_are_not_possible(wrong, message):
    with pytest.raises(RetrievalUsageError, match=message):
        SearchOptions(**wrong)


@pytest.mark.parametrize("how", ["mean", "slerp"])
def test_the_ends_and_the_middle(how):
    text, image = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    np.testing.assert_allclose(composed(text, image, how, 1), text, atol=1e-7)
    np.testing.assert_allclose(composed(text, image, how, 0), image, atol=1e-7)
    np.testing.assert_allclose(composed(text, image, how, 0.5), [0.5**0.5, 0.5**0.5, 0], atol=1e-7)
    np.testing.assert_allclose(composed(text, text, how, 0.3), text, atol=1e-7)


def test_slerp_goes_by_the_angle():
    text, image = np.array([1.0, 0]), np.array([np.cos(2), np.sin(2)])
    for part in (0.1, 0.25, 0.9):
        between = composed(text, image, "slerp", part)
        assert np.arccos(between @ image) == pytest.approx(part * 2, abs=1e-6)
    assert abs(np.arccos(composed(text, image, "mean", 0.25) @ image) - 0.5) > 0.05


@pytest.mark.parametrize("how", ["mean", "slerp"])
def test_nothing_is_between_opposites(how):
    with pytest.raises(RetrievalUsageError, match="compose 'lists'"):
        composed(np.array([1.0, 0]), np.array([-1.0, 0]), how, 0.5)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_balanced_orders_by_the_sum_of_scores_in_their_own_units(seed, part):
    g = np.random.default_rng(seed)
    items = g.normal(size=(40, 8)) * g.uniform(0.5, 2, size=(40, 1))
    text, image = g.normal(size=8), g.normal(size=8)
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    scores = [unit @ (v / np.linalg.norm(v)) for v in (text, image)]
    wanted = part * scores[0] / scores[0].std() + (1 - part) * scores[1] / scores[1].std()
    query = balanced(text, image, items, part)
    assert np.linalg.norm(query) == pytest.approx(1)
    assert np.argsort(-(unit @ query)).tolist() == np.argsort(-wanted).tolist()


def test_balanced_with_nothing_to_balance_is_the_mean():
    text, image = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    for items in (np.empty((0, 3)), np.array([[0, 0, 1.0], [0, 1.0, 1.0]])):
        np.testing.assert_allclose(
            balanced(text, image, items, 0.5), composed(text, image, "mean", 0.5), atol=1e-6
        )
    with pytest.raises(RetrievalUsageError, match="compose 'lists'"):
        balanced(text, -text, np.eye(3), 0.5)
