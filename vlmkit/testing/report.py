"""What a conformance check found: one outcome a check, with what was measured, and a table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        status: Whether it passed; `skipped` where there is nothing to check.
        measured: The figures, or why it was skipped.
        limit: What they are held against.
    """

    status: Status
    measured: str
    limit: str = ""


def judged(holds: bool, measured: str, limit: str) -> Outcome:
    """Passed if it `holds`."""
    return Outcome("passed" if holds else "failed", measured, limit)


def at_most(value: float, limit: float, what: str) -> Outcome:
    """Passed if a difference is not larger than its limit; not a number is larger."""
    return judged(value <= limit, f"{what} {value:.1e}", f"<= {limit:g}")


def skipped(why: str) -> Outcome:
    """Nothing to check."""
    return Outcome("skipped", why)


@dataclass(frozen=True)
class Row:
    """A check and its outcome.

    Attributes:
        name: Of the check.
        about: What it asks, in a sentence.
        status, measured, limit: See `Outcome`.
    """

    name: str
    about: str
    status: Status
    measured: str
    limit: str


@dataclass(frozen=True)
class Report:
    """All checks of one encoder.

    Attributes:
        subject: What was checked.
        rows: One a check, in the order of the table.
    """

    subject: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(row.name for row in self.rows if row.status == "failed")

    def raise_for_failures(self) -> None:
        """Raise an `AssertionError` with the table if a check failed, for a test of your own."""
        if not self.ok:
            raise AssertionError(str(self))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"encoder": self.subject, "ok": self.ok, "checks": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        """A table of text, and what the failed checks ask for."""
        cells = [(row.name, row.status, row.measured, row.limit) for row in self.rows]
        lines = columns([("check", "status", "measured", "limit"), *cells])
        asked = [f"{row.name}: {row.about}" for row in self.rows if row.status == "failed"]
        counts = {s: sum(row.status == s for row in self.rows) for s in ("passed", "failed", "skipped")}
        summary = ", ".join(f"{number} {status}" for status, number in counts.items())
        return "\n".join([self.subject, *lines, *asked, summary])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text with cells below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
