"""A sweep from start to end: check all, tune, train, measure, draw; the same call goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmkit.sweep.grid import Grid, Job, Place, final_job, make_grid
from vlmkit.sweep.ledger import Ledger, Quiet, Watcher
from vlmkit.sweep.lock import locked
from vlmkit.sweep.measure import Row
from vlmkit.sweep.plot import plot_sweep
from vlmkit.sweep.pool import Pool
from vlmkit.sweep.request import Request, refuse_other, remember
from vlmkit.sweep.tune import Choices, why_open
from vlmkit.train.metrics import require_plots
from vlmkit.train.stage_run import Interrupted

NOTES = (
    "Mean over the finished seeds (smallest to largest). Exact match of generated answers; the blank image "
    "shows what the questions alone give away.",
    "Images/s: in the steps of the last stage. Training s: the steps of all stages. Peak memory: resident, "
    "of the training process with its evaluation; MB are 10^6 bytes.",
)
TUNING_NOTE = "The best exact match on these data is chosen for each combination, the first of equal ones."


@dataclass(frozen=True)
class Swept:
    """A sweep that has come to its end.

    Attributes:
        folder: With `table.csv`, `table.md`, `plot.png` and `runs/`.
        rows: Of the runs.
        tuning: Of the candidates; empty without tuning.
    """

    folder: Path
    rows: list[Row]
    tuning: list[Row]

    @property
    def whole(self) -> bool:
        """Whether every run is finished."""
        return all(row.status == "finished" for row in self.rows)


def sweep(request: Request, folder: Path, at_once: int = 1, watcher: Watcher | None = None) -> Swept:
    """Run a grid of recipes; what is finished is not run again.

    Args:
        request: The grid.
        folder: Where all is written.
        at_once: Processes at a time.
        watcher: Told of the progress.

    Raises:
        UsageError: A recipe of the grid has an error, or the folder holds another sweep.
        Interrupted: A signal came; the same request goes on.
    """
    require_plots()
    grid = make_grid(request)
    refuse_other(folder, request)
    told = watcher or Quiet()
    told.planned(grid)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        remember(folder, request)
        work = _Work(request, Place(folder), at_once, lock, told)
        tuning = work.tune(grid)
        return Swept(folder, work.train(grid, tuning), tuning)


@dataclass(frozen=True)
class _Work:
    """A sweep that holds its folder."""

    request: Request
    place: Place
    at_once: int
    lock: int
    watcher: Watcher

    def tune(self, grid: Grid) -> list[Row]:
        """Run candidates, choose; returns their rows."""
        jobs = [job for tried in grid.candidates for job in tried]
        ledger = Ledger(self.place, "tuning", jobs, [self._made_by(), TUNING_NOTE, *NOTES], self.watcher)
        if jobs:
            choices = Choices(self.place)
            self._run(ledger, choices.open(grid.candidates))
            choices.make(grid.candidates, ledger.rows)
        return list(ledger.rows.values())

    def train(self, grid: Grid, tuning: Sequence[Row]) -> list[Row]:
        """Run the jobs of the table; returns their rows."""
        choices = Choices(self.place)
        jobs = [self._tuned(job, choices) for runs in grid.runs for job in runs]
        ready = [job for job in jobs if job.tuned or not self.request.tune]
        ledger = Ledger(self.place, "table", jobs, [self._made_by(), *NOTES], self.watcher)
        for job in jobs:
            if job not in ready:
                ledger.fail(job, why_open([row for row in tuning if row.varied == job.varied]))
        try:
            # Every combination once, before any gets its second seed.
            self._run(ledger, sorted(ready, key=lambda job: job.seed))
        finally:
            plot_sweep(list(ledger.rows.values()), self.place.root / "plot.png")
        return list(ledger.rows.values())

    def _tuned(self, job: Job, choices: Choices) -> Job:
        """A job with the values that its combination is tuned to."""
        return final_job(self.request, job.varied, job.seed, choices.of(job) or {})

    def _run(self, ledger: Ledger, jobs: Sequence[Job]) -> None:
        pool = Pool(self.place, self.request.recipe, self.at_once, self.lock, ledger.ended)
        pool.run(jobs)
        if pool.stopped:
            done = sum(row.status == "finished" for row in ledger.rows.values())
            raise Interrupted(
                f"stopped; {done} of {len(ledger.rows)} {ledger.what} in {self.place.root} are finished, "
                "and the same command goes on with the others"
            )

    def _made_by(self) -> str:
        return f"Made by `{self.request.command()}`."
