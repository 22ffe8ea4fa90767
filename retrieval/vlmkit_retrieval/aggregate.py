"""From one answer per image to one answer for the question, by a rule that is said in words.

A yes/no question about a gallery is answered by `any` ("is there a red shape?": one image is enough). The
negated question turns this round: to "is there no red shape?" an image without one says yes, which proves
nothing about the others, so all must say yes. `auto` takes `all` when the question contains no, not, none,
nothing, never, cannot or n't. It reads words, not meaning: "is there an image with no red?" asks for one
image and contains a "no". Where it matters, name the rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError

Rule = Literal["auto", "any", "all", "majority"]
RULES: tuple[str, ...] = get_args(Rule)

_NEGATION = re.compile(r"\b(no|not|none|nothing|never|cannot)\b|n['’]t\b", re.IGNORECASE)
_YES_NO = re.compile(r"(yes|no)(?=$|\s*[,.;:!])")


@dataclass(frozen=True)
class Verdict:
    """An aggregated answer.

    Attributes:
        text: The answer, in lower case without a final period.
        supports: For each single answer, whether it is the reason for `text`.
        rule: The rule that was used, in words.
    """

    text: str
    supports: tuple[bool, ...]
    rule: str


def aggregate(answers: Sequence[str], question: str = "", rule: str = "auto") -> Verdict:
    """One answer out of many, given best hit first.

    Args:
        answers: One answer an item, in order of rank.
        question: What was asked; `auto` looks for a negation in it.
        rule: `any` (yes if one says yes), `all` (yes if all do), `majority` (most frequent, ties to the
            better rank), or `auto`: the first two for yes/no answers, else the third.

    Raises:
        RetrievalUsageError: An unknown rule, or no answers.
        RetrievalError: `any` or `all` for answers that are not all yes or no.
    """
    if rule not in RULES:
        raise RetrievalUsageError(f"unknown rule {rule!r} (known: {', '.join(RULES)})")
    if not answers:
        raise RetrievalUsageError("there are no answers to aggregate; ask about at least one item")
    plain = [normalise(answer) for answer in answers]
    verdicts = [_yes_no(answer) for answer in plain]
    if rule == "auto":
        rule = _chosen_rule(question) if all(verdicts) else "majority"
    if rule == "majority":
        return _majority(plain)
    if not all(verdicts):
        odd = answers[verdicts.index("")]
        raise RetrievalError(
            f"rule {rule!r} needs yes or no from every item, one said {odd!r}; use 'majority'"
        )
    return _any(verdicts) if rule == "any" else _all(verdicts)


def normalise(answer: str) -> str:
    """Lower case, without surrounding space and final periods."""
    return answer.strip().lower().rstrip(".").strip()


def _yes_no(answer: str) -> str:
    """`yes` or `no` where the answer is or starts with it ("yes, two of them"), else empty."""
    match = _YES_NO.match(answer)
    return match.group(1) if match else ""


def _chosen_rule(question: str) -> str:
    return "all" if _NEGATION.search(question) else "any"


def _any(verdicts: Sequence[str]) -> Verdict:
    text = "yes" if "yes" in verdicts else "no"
    rule = f"any: yes if at least one of the {len(verdicts)} items asked says yes, else no"
    return Verdict(text, tuple(verdict == text for verdict in verdicts), rule)


def _all(verdicts: Sequence[str]) -> Verdict:
    text = "no" if "no" in verdicts else "yes"
    rule = f"all: yes if every one of the {len(verdicts)} items asked says yes, else no"
    return Verdict(text, tuple(verdict == text for verdict in verdicts), rule)


def _majority(plain: Sequence[str]) -> Verdict:
    # most_common keeps the order of first occurrence among equals, and that order is the rank.
    text = Counter(plain).most_common(1)[0][0]
    rule = f"majority: the most frequent answer of the {len(plain)} items asked, ties to the best-ranked item"
    return Verdict(text, tuple(answer == text for answer in plain), rule)
