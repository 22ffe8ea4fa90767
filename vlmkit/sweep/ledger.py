"""The rows of a sweep so far, and whom it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from vlmkit.sweep.grid import Grid, Job, Place
from vlmkit.sweep.measure import Row, measure
from vlmkit.sweep.tables import write_tables


class Watcher(Protocol):
    """Told of what happens; the command line prints it, tests collect it."""

    def planned(self, grid: Grid) -> None:
        """All recipes are checked, none is started."""
        ...

    def ended(self, job: Job, row: Row, left: int, seconds: float) -> None:
        """A job has ended; `left` others of its kind are not, which takes about so many `seconds`."""
        ...


class Quiet:
    """A watcher that says nothing."""

    def planned(self, grid: Grid) -> None:
        """See `Watcher`."""

    def ended(self, job: Job, row: Row, left: int, seconds: float) -> None:
        """See `Watcher`."""


class Ledger:
    """The rows of jobs and their table, written anew whenever one has ended.

    Args:
        place: Where the sweep writes.
        name: Of the table's files.
        jobs: All of them.
        notes: Below the table.
        watcher: Told of each job that ends.
    """

    def __init__(
        self, place: Place, name: str, jobs: Sequence[Job], notes: Sequence[str], watcher: Watcher
    ) -> None:
        self.place, self.name, self.notes, self.watcher = place, name, notes, watcher
        self.rows = {job.name: measure(place, job) for job in jobs}
        self.write()

    @property
    def what(self) -> str:
        """What the jobs are, in words."""
        return "tuning runs" if self.name == "tuning" else "runs"

    def fail(self, job: Job, error: str) -> None:
        """A job that cannot be started."""
        self.rows[job.name] = replace(self.rows[job.name], status="failed", error=error)
        self.write()

    def write(self) -> None:
        """Write the table."""
        if self.rows:
            write_tables(self.place.root, self.name, list(self.rows.values()), self.notes)

    def ended(self, job: Job, left: int, seconds: float) -> None:
        """See `Pool.ended`."""
        self.rows[job.name] = measure(self.place, job)
        self.write()
        self.watcher.ended(job, self.rows[job.name], left, seconds)
