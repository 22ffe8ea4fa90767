from __future__ import annotations

import pytest

from vlmkit_retrieval.aggregate import aggregate
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError


@pytest.mark.parametrize(
    ("question", "answers", "text", "supports", "rule"),
    [
        ("is there a red shape?", ["no", "Yes.", "no"], "yes", (False, True, False), "any: "),
        ("is there a red shape?", ["No", "no."], "no", (True, True), "any: "),
        ("is there a red shape?", ["yes, two of them", "no"], "yes", (True, False), "any: "),
        ("is there no red shape?", ["yes", "no", "yes"], "no", (False, True, False), "all: "),
        ("Isn't there a red shape?", ["yes", "yes"], "yes", (True, True), "all: "),
        ("Isn’t there a red shape?", ["yes", "no"], "no", (False, True), "all: "),
        ("is there a note?", ["no", "yes"], "yes", (False, True), "any: "),
        ("which shape?", ["circle", "Square.", "square"], "square", (False, True, True), "majority: "),
        ("which shape?", ["circle", "square"], "circle", (True, False), "majority: "),
        ("which shape?", ["no shape", "yes"], "no shape", (True, False), "majority: "),
    ],
)
def test_auto(question, answers, text, supports, rule):
    verdict = aggregate(answers, question)
    assert (verdict.text, verdict.supports) == (text, supports)
    assert verdict.rule.startswith(rule)
    assert f"{len(answers)} items" in verdict.rule


def test_a_named_rule_is_taken():
    answers = ["yes", "no", "no"]
    assert [aggregate(answers, rule=rule).text for rule in ("any", "all", "majority")] == ["yes", "no", "no"]


def test_what_cannot_be_aggregated():
    with pytest.raises(RetrievalError, match=r"'any' needs yes or no .* said 'A circle'"):
        aggregate(["yes", "A circle"], rule="any")
    with pytest.raises(RetrievalUsageError, match=r"unknown rule 'most' \(known: auto, any, all, majority\)"):
        aggregate(["yes"], rule="most")
    with pytest.raises(RetrievalUsageError, match="no answers"):
        aggregate([])
