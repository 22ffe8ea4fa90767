"""Builds an approximate index on a copy, measures it, and puts it in the place of the exact one.

    copy -> exact search on it -> build -> every setting on it -> the first that finds enough -> swap

All but the copy and the swap runs in processes of their own. Meanwhile the engine can be searched; writes are
refused, so that none is lost. Killed at any moment, the index is the old one or the new one, whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmkit_retrieval.engines.built import Figures
from vlmkit_retrieval.engines.edge import EdgeEngine
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.eval.searching import disk_bytes
from vlmkit_retrieval.optimize.modes import Mode
from vlmkit_retrieval.optimize.process import run_job
from vlmkit_retrieval.optimize.refuse import check_engine, chosen_spaces, large_spaces
from vlmkit_retrieval.optimize.report import OptimizeReport, SpaceReport, Trial, choose
from vlmkit_retrieval.types import Engine

# A copy, what is built from it, and what the library holds twice while it merges, in sizes of the shard.
_DISK = 3.0
Confirm = Callable[[OptimizeReport], bool]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Demands:
    """What must be measured, and reached.

    Attributes:
        min_recall: Mean share of the k exact neighbours that must be found.
        queries: How many are drawn from the index.
        k: Neighbours of a query.

    Raises:
        RetrievalUsageError: A value that is not possible.
    """

    min_recall: float = 0.95
    queries: int = 200
    k: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.min_recall <= 1:
            raise RetrievalUsageError(f"the recall to reach is {self.min_recall}; it lies above 0, up to 1")
        if self.queries < 20 or self.k < 1:
            raise RetrievalUsageError(
                f"{self.queries} queries for {self.k} neighbours: give at least 20 queries, and 1 neighbour"
            )


def optimize(
    engine: Engine,
    mode: Mode,
    spaces: Sequence[str] | None = None,
    demands: Demands | None = None,
    confirm: Confirm | None = None,
    progress: Progress = lambda step: None,
) -> OptimizeReport:
    """Build, measure, and swap in what finds enough.

    What other spaces had stays, and is built and measured again with these; a space that has become too small
    to gain anything is searched exactly again.

    Args:
        engine: An open embedded engine; an index's is `index.engine`.
        mode: What to build.
        spaces: Dense spaces to build it for; None for all.
        demands: What to measure and to reach.
        confirm: Asked before the swap, with everything that was measured; None swaps at once.
        progress: Told of each step.

    Returns:
        What was measured, and whether the index is another one now.

    Raises:
        RetrievalUsageError: Another kind of engine, or too few items to gain anything.
        RetrievalError: The engine is being optimized already, the disk is too full, or building failed;
            nothing has changed.
    """
    demands = demands or Demands()
    opened = check_engine(engine)
    chosen, built = chosen_spaces(opened, spaces), opened.built.spaces
    kept = {name: Mode.parse(built[name].mode) for name in large_spaces(opened, built)}
    modes = {**kept, **dict.fromkeys(chosen, mode)}
    _check_disk(opened)
    progress("copying the index")
    with opened.copied() as (work, shard):
        report = _measured(work, shard, modes, demands, progress)
        if not report.reached or (confirm is not None and not confirm(report)):
            return report
        report.built(datetime.now(UTC).isoformat(timespec="seconds")).save(shard)
        opened.replace_by(shard)
    return replace(report, swapped=True)


def _measured(
    work: Path, shard: Path, modes: Mapping[str, Mode], demands: Demands, progress: Progress
) -> OptimizeReport:
    jobs = {name: _Jobs(work, shard, name, number) for number, name in enumerate(modes)}
    progress("measuring exact search")
    exact = {name: own.exact(demands) for name, own in jobs.items()}
    progress(f"building {', '.join(f'{mode.name} for {name}' for name, mode in modes.items())}")
    names = {name: mode.name for name, mode in modes.items()}
    built = run_job({"verb": "build", "shard": str(shard), "modes": names}, work)
    progress("measuring what was built")
    spaces = tuple(own.trials(modes[name], exact[name], demands) for name, own in jobs.items())
    return OptimizeReport(spaces, demands.min_recall, built["cpu_seconds"])


@dataclass(frozen=True)
class _Jobs:
    """What is measured of one space; its number names the file of its queries."""

    work: Path
    shard: Path
    name: str
    number: int

    def exact(self, demands: Demands) -> dict[str, Any]:
        """`items`, `queries` and the figures of exact search."""
        drawn = self._run("draw", queries=demands.queries)
        return {**drawn, "figures": self._run("exact", k=demands.k)}

    def trials(self, mode: Mode, exact: dict[str, Any], demands: Demands) -> SpaceReport:
        """Every setting of what was built."""
        settings = mode.settings()
        found = self._run("measure", k=demands.k, settings=[asdict(own) for own in settings])["figures"]
        trials = tuple(Trial(own, Figures(**row)) for own, row in zip(settings, found, strict=True))
        counts = (exact["items"], demands.k, exact["queries"])
        chosen = choose(trials, demands.min_recall)
        return SpaceReport(self.name, mode.name, *counts, Figures(**exact["figures"]), trials, chosen)

    def _run(self, verb: str, **more: Any) -> dict[str, Any]:
        where = {"shard": str(self.shard), "file": str(self.work / f"queries-{self.number}.json")}
        return run_job({"verb": verb, "space": self.name, **where, **more}, self.work)


def _check_disk(engine: EdgeEngine) -> None:
    needed = int(_DISK * disk_bytes(engine.location))
    free = shutil.disk_usage(engine.location).free
    if free < needed:
        raise RetrievalError(
            f"{engine.location}: building needs up to {needed / 1e9:.1f} GB beside it, {free / 1e9:.1f} GB "
            "are free; make room"
        )
