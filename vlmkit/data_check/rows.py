"""Samples to rows of tokens as training makes them, from the sizes of images; what does not work is noted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmkit.budget import SizedImage
from vlmkit.data.collate import TextRules, fitted, sample_rows
from vlmkit.data.pack import PackedRow
from vlmkit.data.problems import kind_of
from vlmkit.data.sample import Sample, read_row
from vlmkit.data_check.findings import Part, Problem
from vlmkit.data_check.images import Images
from vlmkit.data_check.subject import Subject
from vlmkit.errors import VlmkitError


@dataclass(frozen=True)
class CheckRows:
    """Work on positions of a stage's data.

    Attributes:
        subject: The stage.
        data: Number of its data set.
        images: What is known of them.
    """

    subject: Subject
    data: int
    images: Images

    def __call__(self, positions: Sequence[int]) -> dict[str, Part]:
        """What was counted, by source."""
        parts: dict[str, Part] = defaultdict(Part)
        data = self.subject.data
        for position in positions:
            number = data.numbers[position]
            part = parts[data.source(number)]
            part.counts["samples"] += 1
            row = read_row(data.samples, number)
            if row.error is not None:
                part.problems.append(Problem(kind_of(row.error), row.name, str(row.error)))
            elif row.sample is not None:
                self._sample(row.sample, self.images.of(self.data, position), part)
        return dict(parts)

    def _sample(self, sample: Sample, images: list[int], part: Part) -> None:
        part.counts["images"] += len(images)
        part.counts["conversations"] += len(sample.conversations)
        part.counts["captions"] += bool(sample.captions and images)
        broken = [self.images.problems[i] for i in dict.fromkeys(images) if i in self.images.problems]
        part.problems += [Problem(kind, sample.id, message) for kind, message in broken]
        rules = self.subject.rules
        if broken:
            # Their sizes are not known: the text is looked at with one token an image, and not counted.
            alone = rules and replace(rules, count_tokens=_one, max_length=None)
            _, problems = _rows(sample, [(1, 1, 0)] * len(images), alone)
            part.problems += problems
            return
        sizes = [(int(width), int(height)) for width, height in self.images.sizes_N2[images]]
        try:
            fit = fitted(sample.id, sizes, self.subject.processor.fit)
        except VlmkitError as error:
            part.problems.append(Problem(kind_of(error), sample.id, str(error)))
            return
        rows, problems = _rows(sample, fit, rules)
        part.problems += problems
        if rules is None:
            part.counts["rows"] += 1
        for row in rows:
            _count(row, rules, part)


def _one(image: SizedImage) -> int:
    return 1


def _rows(
    sample: Sample, sizes: list[SizedImage], rules: TextRules | None
) -> tuple[list[PackedRow], list[Problem]]:
    """The rows of a sample, or what is wrong with each of its conversations."""
    if rules is None:
        return [], []
    try:
        return sample_rows(sample, sizes, rules), []
    except VlmkitError as error:
        first = Problem(kind_of(error), sample.id, str(error))
    problems: list[Problem] = []
    for conversation in sample.conversations:
        try:
            sample_rows(replace(sample, conversations=(conversation,)), sizes, rules)
        except VlmkitError as error:
            problem = Problem(kind_of(error), sample.id, str(error))
            problems += [problem] * (problem not in problems)
    # Packed together they may be too long where each alone is not.
    return [], problems or [first]


def _count(row: PackedRow, rules: TextRules | None, part: Part) -> None:
    assert rules is not None
    part.counts["rows"] += 1
    part.counts["tokens"] += len(row.ids)
    part.counts["image_tokens"] += row.ids.count(rules.image_token_id)
    part.counts["supervised"] += sum(weight > 0 for weight in row.weights)
    part.lengths[len(row.ids)] += 1
