"""What is counted, by stage and source; parts that workers counted add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FIRST = 5
# Upper ends of the bars of lengths: each about 1.4 times the one before.
BINS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one sample.

    Attributes:
        kind: A name from `PROBLEMS`.
        id: Of the sample; of a row that cannot be read, what `row_name` says.
        message: What was found and what to do.
    """

    kind: str
    id: str
    message: str


@dataclass
class Listed:
    """Samples with the same kind of problem: all ids, and the messages of the first few."""

    ids: list[str] = field(default_factory=list)
    first: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """One more."""
        self.ids.append(problem.id)
        if len(self.first) < FIRST:
            self.first.append(problem)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        said = [{"id": p.id, "message": p.message} for p in self.first]
        return {"count": len(self.ids), "first": said, "ids": self.ids}


@dataclass
class Findings:
    """Counts of one source in one stage.

    Attributes:
        samples: Looked at, those with problems included.
        conversations: Of the samples that could be read.
        captions: Samples with an image and a caption.
        rows: What the stage trains on: conversations, or packed ones; without those that have a problem.
        images: Uses of images in samples; one image may be used often.
        tokens, image_tokens, supervised: Tokens of all rows.
        lengths: Rows by their number of tokens.
        problems: What would stop the training, or be skipped, by kind.
        notes: What would not, by kind.
    """

    samples: int = 0
    conversations: int = 0
    captions: int = 0
    rows: int = 0
    images: int = 0
    tokens: int = 0
    image_tokens: int = 0
    supervised: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    problems: dict[str, Listed] = field(default_factory=dict)
    notes: dict[str, Listed] = field(default_factory=dict)

    COUNTS = (
        "samples",
        "conversations",
        "captions",
        "rows",
        "images",
        "tokens",
        "image_tokens",
        "supervised",
    )

    def add(self, problem: Problem) -> None:
        """One more problem."""
        self.problems.setdefault(problem.kind, Listed()).add(problem)

    def note(self, problem: Problem) -> None:
        """One more that does not stop a training."""
        self.notes.setdefault(problem.kind, Listed()).add(problem)

    @property
    def found(self) -> int:
        """Number of problems."""
        return sum(len(listed.ids) for listed in self.problems.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{name: getattr(self, name) for name in self.COUNTS},
            "supervised_share": self.supervised / self.tokens if self.tokens else None,
            "lengths": lengths_as_dict(self.lengths),
            "problems": {kind: listed.as_dict() for kind, listed in sorted(self.problems.items())},
            "notes": {kind: listed.as_dict() for kind, listed in sorted(self.notes.items())},
        }


@dataclass
class Part:
    """What a worker counted of one source: counts, and problems in order."""

    counts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def into(self, findings: Findings) -> None:
        """Add to the whole."""
        for name, value in self.counts.items():
            setattr(findings, name, getattr(findings, name) + value)
        findings.lengths.update(self.lengths)
        for problem in self.problems:
            findings.add(problem)


def histogram(lengths: Counter[int]) -> list[tuple[int, int, int]]:
    """(least length, most, rows) of bars from the first to the last that is not empty."""
    if not lengths:
        return []
    ends = [*BINS, *_more(max(lengths))]
    starts = [1, *(end + 1 for end in ends)]
    bars = [(a, b, sum(n for k, n in lengths.items() if a <= k <= b)) for a, b in zip(starts, ends)]
    used = [i for i, (_, _, rows) in enumerate(bars) if rows]
    return bars[used[0] : used[-1] + 1]


def _more(longest: int) -> Iterable[int]:
    end = BINS[-1]
    while end < longest:
        end *= 2
        yield end


def quantile(lengths: Counter[int], share: float) -> int:
    """The least length that this share of the rows does not exceed."""
    below, total = 0, lengths.total()
    for length in sorted(lengths):
        below += lengths[length]
        if below >= share * total:
            return length
    return 0


def lengths_as_dict(lengths: Counter[int]) -> dict[str, Any] | None:
    """Least, median, 95 %, most, mean and bars; None without rows."""
    if not lengths:
        return None
    return {
        "min": min(lengths),
        "median": quantile(lengths, 0.5),
        "p95": quantile(lengths, 0.95),
        "max": max(lengths),
        "mean": sum(k * n for k, n in lengths.items()) / lengths.total(),
        "bars": [{"from": a, "to": b, "rows": rows} for a, b, rows in histogram(lengths)],
    }
