"""From a request to jobs, one a training process; every recipe of the grid is checked before one trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vlmkit.assemble import check_blocks
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.recipe import Block, Recipe, load_recipe
from vlmkit.sweep.overlap import refuse_overlaps
from vlmkit.sweep.request import Request
from vlmkit.sweep.values import Values, as_overrides, combinations, slug

Kind = Literal["runs", "tuning"]


@dataclass(frozen=True)
class Job:
    """One recipe that is trained in a process of its own.

    Attributes:
        kind: A run of the table, or a candidate of the tuning.
        varied: What distinguishes it from the other combinations.
        tuned: The values that are tried, or that were chosen.
        seed: Its seed.
        overrides: All of them but `output`.
        recipe: What comes of them.
        name: Its folder.
    """

    kind: Kind
    varied: Values
    tuned: Values
    seed: int
    overrides: Sequence[str]
    recipe: Recipe
    name: str


@dataclass(frozen=True)
class Place:
    """Where a sweep writes.

    Attributes:
        root: Its folder.
    """

    root: Path

    @property
    def shared(self) -> Path:
        """What several runs have in common."""
        return self.root / "shared"

    def run(self, job: Job) -> Path:
        """The run directory of a job."""
        return self.root / job.kind / job.name

    def log(self, job: Job) -> Path:
        """What the job's processes have printed."""
        return self.root / "logs" / job.kind / f"{job.name}.log"

    def record(self, job: Job) -> Path:
        """How the job's processes have ended."""
        return self.root / "records" / job.kind / f"{job.name}.json"


def final_job(request: Request, varied: Values, seed: int, tuned: Values) -> Job:
    """A run of the table."""
    return _job(request, "runs", varied, tuned, seed, ())


def candidate(request: Request, varied: Values, tuned: Values) -> Job:
    """A candidate of the tuning, of the first seed."""
    return _job(request, "tuning", varied, tuned, _seeds(request)[0], request.tune_set)


def _job(
    request: Request, kind: Kind, varied: Values, tuned: Values, seed: int, on_top: Sequence[str]
) -> Job:
    given = [*request.overrides, *as_overrides(varied), *as_overrides(tuned), *on_top, f"seed={seed}"]
    recipe = load_recipe(request.recipe, given, check_blocks)
    # The values that a run is tuned to are the outcome, and no part of its name.
    named = {**varied, **tuned} if kind == "tuning" else varied
    return Job(kind, varied, tuned, seed, given, recipe, slug(named, seed))


def _seeds(request: Request) -> range:
    first = request.read().get("seed", 0)
    if not isinstance(first, int):
        raise UsageError(f"seed {first!r} is no integer")
    return range(first, first + request.seeds)


@dataclass(frozen=True)
class Grid:
    """All jobs of a request.

    Attributes:
        candidates: Of the tuning, for each combination; empty without one.
        runs: Of each combination, one a seed, as they are without tuning.
    """

    candidates: list[list[Job]]
    runs: list[list[Job]]


def make_grid(request: Request) -> Grid:
    """Load and check every recipe of a request.

    Raises:
        UsageError: All errors of all recipes, or the tuning looks at the test data.
    """
    errors: dict[str, list[str]] = defaultdict(list)

    def attempt(varied: Values, tuned: Values, make: Callable[[], Job]) -> list[Job]:
        try:
            return [make()]
        except VlmkitError as error:
            errors[str(error)].append(", ".join(as_overrides({**varied, **tuned})) or "the recipe")
            return []

    grid = Grid([], [])
    for varied in combinations(request.vary):
        makers = [partial(final_job, request, varied, seed, {}) for seed in _seeds(request)]
        grid.runs.append([job for make in makers for job in attempt(varied, {}, make)])
        tries = combinations(request.tune) if request.tune else []
        found = [attempt(varied, tuned, partial(candidate, request, varied, tuned)) for tuned in tries]
        grid.candidates.append([job for jobs in found for job in jobs])
    if errors:
        lines = [f"{'; '.join(dict.fromkeys(where))}:\n  {said}" for said, where in errors.items()]
        raise UsageError("the sweep cannot start:\n" + "\n".join(lines))
    _refuse_one_name([job for jobs in (*grid.candidates, *grid.runs) for job in jobs])
    pairs = [(job, runs[0]) for tried, runs in zip(grid.candidates, grid.runs) for job in tried]
    refuse_overlaps([(_tested_on(job), _tested_on(run)) for job, run in pairs])
    return grid


def _refuse_one_name(jobs: Sequence[Job]) -> None:
    """Two jobs must not write into one folder: `1` and `"1"` are two values with one name."""
    named: dict[tuple[Kind, str], Job] = {}
    for job in jobs:
        other = named.setdefault((job.kind, job.name), job)
        if other is not job:
            mine, others = (as_overrides({**own.varied, **own.tuned}) for own in (job, other))
            first, second = (
                ", ".join(t for t in a if t not in b) for a, b in ((others, mine), (mine, others))
            )
            raise UsageError(f"{first} and {second} have one folder, {job.name}; leave one of them out")


def _tested_on(job: Job) -> Block:
    """What tuning chooses by, or the table is about."""
    if job.recipe.evaluate is None:
        raise UsageError("--tune chooses by the evaluation, and the recipe has none; add evaluate.data")
    return job.recipe.evaluate.data
