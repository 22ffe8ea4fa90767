"""One tuning rule for every combination: the same small grid, chosen by validation data before any final run.

Each candidate is trained once, with the first seed and the overrides of `--tune-set`. The best by exact match
of all questions is chosen, the first of equal ones. A choice is written down and stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from vlmkit.checkpoint import write_json
from vlmkit.sweep.grid import Job, Place
from vlmkit.sweep.measure import EXACT, Row
from vlmkit.sweep.values import Values, as_text

FILE = "tuning.json"


def choose(rows: Sequence[Row]) -> Values | None:
    """The values of the best candidate; None where none has a score, or one could still get it.

    A candidate that failed has lost: a learning rate at which the loss is not finite is an outcome. One that
    was killed has not: memory that ran out says nothing about its values.
    """
    if any(row.status not in ("finished", "failed") for row in rows):
        return None
    scored = [row for row in rows if EXACT in row.figures]
    # The first of equal ones: `max` keeps it.
    return max(scored, key=lambda row: row.figures[EXACT]).tuned if scored else None


def why_open(rows: Sequence[Row]) -> str:
    """Why `choose` has chosen none of these."""
    killed = [row for row in rows if row.status == "killed"]
    if not killed:
        return "no candidate of its tuning has finished"
    return (
        f"its tuning is not decided: {killed[0].name} was {killed[0].error}; the same command tries it again "
        "(with fewer --jobs where memory ran out)"
    )


class Choices:
    """What combinations are tuned to, kept in the sweep's folder.

    Args:
        place: Where the sweep writes.
    """

    def __init__(self, place: Place) -> None:
        self.path = place.root / FILE
        stored = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        self.made: dict[str, Values] = stored

    def open(self, candidates: Sequence[Sequence[Job]]) -> list[Job]:
        """The candidates of combinations that are not tuned yet."""
        return [job for tried in candidates for job in tried if self.of(job) is None]

    def of(self, job: Job) -> Values | None:
        """What the combination of a job is tuned to."""
        return self.made.get(as_text(job.varied))

    def make(self, candidates: Sequence[Sequence[Job]], rows: Mapping[str, Row]) -> None:
        """Choose for every combination that can be.

        Args:
            candidates: Of each combination.
            rows: Of each candidate, by name.
        """
        for tried in candidates:
            chosen = choose([rows[job.name] for job in tried])
            if chosen is not None:
                self.made[as_text(tried[0].varied)] = chosen
        write_json(self.path, self.made)
