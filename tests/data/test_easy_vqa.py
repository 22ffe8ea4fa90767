"""easy-VQA: counts, splits, and captions that agree with the answers."""

import sys
from collections import Counter

import easy_vqa as package
import pytest

from vlmkit.data.formats import ANSWER_KINDS, DATA_FORMATS
from vlmkit.data.formats.easy_vqa import captions, easy_vqa, facts, question_type
from vlmkit.data.sample import IMAGE
from vlmkit.errors import MissingExtraError, UsageError, VlmkitError


def questions(samples):
    return sum(len(s.conversations) for s in samples)


def test_counts_and_splits():
    every, test = easy_vqa("train+val"), easy_vqa("test")
    assert (len(every), questions(every)) == (4000, 38575)
    assert (len(test), questions(test)) == (1000, 9673)
    train, val = easy_vqa(), easy_vqa("val")
    assert (len(train), len(val)) == (3600, 400)
    assert {s.id for s in train} | {s.id for s in val} == {s.id for s in every}
    assert len({s.id for s in [*every, *test]}) == 5000
    assert all(int(s.id.rsplit("/", 1)[1]) % 10 == 0 for s in val)


def test_a_sample_is_the_packages_own_data():
    texts, answers, image_ids = package.get_test_questions()
    sample = easy_vqa("test", limit=1)[0]
    assert sample.id == "easy_vqa/test/0"
    assert str(sample.images[0]) == package.get_test_image_paths()[0]
    own = [(q, a) for q, a, i in zip(texts, answers, image_ids) if i == 0]
    assert [(c[0].parts, c[1].parts) for c in sample.conversations] == [((IMAGE, q), (a,)) for q, a in own]
    assert sample.open_images()[0].size == (64, 64)


@pytest.mark.parametrize("split", ["train+val", "test"])
def test_captions_agree_with_the_open_answers(split):
    lengths = Counter()
    for sample in easy_vqa(split):
        lengths[len(sample.captions)] += 1
        said = " ".join(sample.captions)
        answers = {c[1].text for c in sample.conversations} - {"yes", "no"}
        assert all(f" {answer}" in f" {said}" for answer in answers)
        if len(sample.captions) == 3:
            colour, shape = sample.captions[0].split()[1:]
            assert sample.captions[1:] == (f"a {colour} shape", f"a {shape}")
            for question, answer in ((c[0].text, c[1].text) for c in sample.conversations):
                asked = [w for w in (colour, shape) if w in question]
                negated = " not " in question or " no " in question
                if answer in ("yes", "no") and asked:
                    assert (answer == "yes") != negated
                elif answer in ("yes", "no"):
                    assert (answer == "yes") == negated
    expected = {3: 3542, 1: 419, 0: 39} if split == "train+val" else {3: 880, 1: 104, 0: 16}
    assert lengths == expected


@pytest.mark.parametrize(
    ("question", "answer", "told"),
    [
        ("what shape is in the image?", "circle", {"shape": "circle"}),
        ("what shape is present?", "circle", {"shape": "circle"}),
        ("what shape does the image contain?", "circle", {"shape": "circle"}),
        ("what is the red shape?", "circle", {"colour": "red", "shape": "circle"}),
        ("what color is the shape?", "teal", {"colour": "teal"}),
        ("what is the color of the triangle?", "teal", {"shape": "triangle", "colour": "teal"}),
        ("is a red shape present?", "yes", {"colour": "red"}),
        ("is a red shape present?", "no", {}),
        ("is no red shape present?", "no", {"colour": "red"}),
        ("is no circle present?", "yes", {}),
        ("does the image contain a circle?", "yes", {"shape": "circle"}),
        ("does the image not contain a red shape?", "no", {"colour": "red"}),
        ("does the image not contain a red shape?", "yes", {}),
        ("is there a blue shape in the image?", "yes", {"colour": "blue"}),
        ("is there not a blue shape?", "no", {"colour": "blue"}),
        ("is there not a triangle in the image?", "yes", {}),
    ],
)
def test_facts_by_hand(question, answer, told):
    assert facts(question, answer) == told


def test_captions_by_hand():
    assert captions([("what color is the triangle?", "red")]) == (
        "a red triangle",
        "a red shape",
        "a triangle",
    )
    assert captions([("what color is the shape?", "red"), ("is a circle present?", "no")]) == ("a red shape",)
    assert captions([("is there a circle?", "yes")]) == ("a circle",)
    assert captions([("is there a circle?", "no")]) == ()


@pytest.mark.parametrize(
    ("question", "answer"),
    [("how many circles?", "red"), ("what color is the shape?", "circle"), ("is a cube present?", "yes")],
)
def test_questions_that_are_not_understood(question, answer):
    with pytest.raises(VlmkitError, match="is not understood"):
        facts(question, answer)


def test_contradictions_are_errors():
    with pytest.raises(VlmkitError, match="contradicts the shape 'circle'"):
        captions([("is there a circle?", "yes"), ("is there a triangle?", "yes")])


def test_question_type():
    kinds = {a: ANSWER_KINDS["easy_vqa"](a) for a in package.get_answers()}
    assert Counter(kinds.values()) == {"colour": 8, "shape": 3, "yes/no": 2}
    with pytest.raises(VlmkitError, match="'purple' is not an answer"):
        question_type("purple")


def test_wrong_arguments():
    with pytest.raises(UsageError, match=r"split of easy_vqa 'tets'; did you mean 'test'"):
        easy_vqa("tets")
    with pytest.raises(UsageError, match="limit is 0"):
        easy_vqa(limit=0)
    assert DATA_FORMATS["easy_vqa"](split="val", limit=3) == easy_vqa("val")[:3]


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(
        MissingExtraError, match=r"easy-vqa is not installed; do: pip install 'vlmkit\[demo\]'"
    ):
        easy_vqa()
