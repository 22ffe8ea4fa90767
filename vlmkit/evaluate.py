"""Exact match of generated answers, by kind of question, beside the blind score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from vlmkit import inference
from vlmkit.data.formats import ANSWER_KINDS
from vlmkit.data.sample import Sample
from vlmkit.recipe import Evaluate
from vlmkit.vlm import VLM

BATCH = 256
Progress = Callable[[str, int, int], None]


def evaluate(model: VLM, samples: Sequence[Sample], settings: Evaluate, progress: Progress) -> dict[str, Any]:
    """Generate an answer for every conversation's last turn and compare it with the reference.

    Args:
        model: With its processor.
        samples: Each conversation ends with the reference answer.
        settings: Names the data (for the kinds of question), and whether a blind pass is made.
        progress: Called with (what, done, total).

    Returns:
        `questions`, `images`, `exact_match` and `blind` (each `all` and a share by kind), `wrong` (the first
        20).
    """
    kind_of = ANSWER_KINDS.get(settings.data.type, lambda answer: "all")
    report: dict[str, Any] = {"data": settings.data.model_dump(), "images": len(samples)}
    passes = [("exact_match", False)] + [("blind", True)] * settings.blind
    for name, blind in passes:
        score = Score(kind_of)
        total = sum(len(s.conversations) for s in samples)
        for group in _groups(samples, blind):
            queries = [inference.Query(c[:-1], images) for c, images, _ in group]
            answers = inference.answer(model, queries, max_new_tokens=settings.max_new_tokens)
            for (conversation, _, owner), answer in zip(group, answers, strict=True):
                score.add(owner, conversation[-2].text, answer, conversation[-1].text)
            progress("blind test" if blind else "test", score.asked, total)
        report |= {"questions": score.asked, name: score.shares()}
        if not blind:
            report["wrong"] = score.wrong[:20]
    return report


class Score:
    """Counts of right answers by kind.

    Args:
        kind_of: Reference answer to the kind of its question.
    """

    def __init__(self, kind_of: Callable[[str], str]) -> None:
        self.kind_of = kind_of
        self.right: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.wrong: list[dict[str, str]] = []

    @property
    def asked(self) -> int:
        """Questions so far."""
        return self.total["all"]

    def add(self, owner: str, question: str, answer: str, reference: str) -> None:
        """Compare one answer; equal means the same text after trimming spaces."""
        right = answer.strip() == reference.strip()
        for kind in dict.fromkeys(("all", self.kind_of(reference))):
            self.total[kind] += 1
            self.right[kind] += right
        if not right:
            self.wrong.append(
                {"sample": owner, "question": question, "answer": answer, "reference": reference}
            )

    def shares(self) -> dict[str, float]:
        """Share of right answers by kind."""
        return {kind: self.right[kind] / self.total[kind] for kind in sorted(self.total)}


Row = tuple[Any, tuple[Image.Image, ...], str]


def _groups(samples: Sequence[Sample], blind: bool) -> Iterator[list[Row]]:
    """Conversations with their images in groups of about `BATCH`; images are opened once a sample."""
    group: list[Row] = []
    for sample in samples:
        images = tuple(sample.open_images())
        if blind:
            images = tuple(Image.new("RGB", image.size, (127, 127, 127)) for image in images)
        group += [(conversation, images, sample.id) for conversation in sample.conversations]
        if len(group) >= BATCH:
            yield group
            group = []
    if group:
        yield group
