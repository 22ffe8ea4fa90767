"""Trackers: every step also goes to TensorBoard, Weights & Biases, MLflow or trackio, through accelerate.

Nothing is sent anywhere unless a recipe names a tracker. `trackers.json` in the run directory says under
which name a tracker knows the run, so that a resumed run goes on there.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vlmkit.checkpoint import write_json
from vlmkit.errors import UsageError
from vlmkit.recipe import Recipe, TrackerName
from vlmkit.train.metrics import Reporter, read_metrics
from vlmkit.train.stage import PartRow
from vlmkit.train.tracker_kinds import Opening, start

KNOWN = "trackers.json"
# What every tracker takes in the name of a figure.
STRANGE = re.compile(r"[^\w\-./ ]")


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Check that trackers can be used, before anything is loaded.

    Raises:
        UsageError: The package of one is not installed.
    """
    for name in names:
        # A tracker's folder of results in the working directory looks like a package without an origin.
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise UsageError(
                f"tracker {name!r} needs the package {name}, which is not installed; do: pip install {name}, "
                "or leave the tracker out (metrics.jsonl and curves.png are always written)"
            )


class Tracked:
    """A reporter that passes on what it is told, and logs the steps; trackers are closed when it is left.

    Args:
        recipe: Names the trackers.
        reporter: Told of everything.
    """

    def __init__(self, recipe: Recipe, reporter: Reporter) -> None:
        self.recipe = recipe
        self.reporter = reporter
        self.trackers: list[Any] = []
        self.opened = False
        self.closing = ExitStack()
        self.current = ""
        # Steps of the stages before.
        self.before = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            self.closing.close()
        except Exception as failure:
            self.reporter.note(f"a tracker could not be closed ({_in_a_line(failure)}); see metrics.jsonl")

    def stage(self, name: str, rows: Sequence[PartRow], note: str) -> None:
        """See `Reporter`."""
        self.reporter.stage(name, rows, note)

    def begin(self, name: str, start: int, steps: int) -> None:
        """See `Reporter`; steps are counted over all stages."""
        self.current = name
        order = [stage.name for stage in self.recipe.stages]
        self.before = self._written(order[: order.index(name)])
        self._open(self.before + start + 1)
        self.reporter.begin(name, start, steps)

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """See `Reporter`."""
        self._log({self.current: values}, self.before + step)
        self.reporter.step(step, values)

    def end(self) -> None:
        """See `Reporter`."""
        self.reporter.end()

    def working(self, what: str, done: int, total: int) -> None:
        """See `Reporter`."""
        self.reporter.working(what, done, total)

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self.reporter.note(text)

    def report(self, report: Mapping[str, Any] | None) -> None:
        """Log what the evaluation found, at the run's last step; once."""
        known = self._known()
        if report is None or known.get("report") == report:
            return
        last = self._written([stage.name for stage in self.recipe.stages])
        self._open(last + 1)
        # Which data it was is in the configuration.
        self._log({"report": {k: v for k, v in report.items() if k != "data"}}, last)
        write_json(self.recipe.run_dir / KNOWN, {**self._known(), "report": dict(report)})

    def _open(self, first: int) -> None:
        """Start the trackers, once; `first` is the step that comes next."""
        if self.opened:
            return
        self.opened = True
        known, config = self._known(), dict(flat(_by_name(self.recipe.model_dump(mode="json"))))
        for name in self.recipe.trackers:
            opening = Opening(self.recipe.run_dir, known.get(name), first, self.closing)
            tracker, identity = start(name, opening)
            self.trackers.append(tracker)
            if name not in known:
                tracker.store_init_configuration(config)
            known[name] = identity
            write_json(self.recipe.run_dir / KNOWN, known)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        numbers = {STRANGE.sub("_", k): v for k, v in flat(values) if not isinstance(v, str)}
        for tracker in tuple(self.trackers):
            try:
                tracker.log(numbers, step=step)
            except Exception as error:
                # Hours of training are worth more than their curve somewhere else.
                self.trackers.remove(tracker)
                self.reporter.note(
                    f"tracker {tracker.name} failed at step {step} and is told no more "
                    f"({_in_a_line(error)}); metrics.jsonl has every step"
                )

    def _known(self) -> dict[str, Any]:
        path = self.recipe.run_dir / KNOWN
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return known

    def _written(self, stages: Sequence[str]) -> int:
        """Steps that these stages have taken."""
        path: Path = self.recipe.run_dir / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        return sum(row["stage"] in stages for row in rows)


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _by_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {**recipe, "stages": {stage["name"]: stage for stage in recipe["stages"]}}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float | str]]:
    """Nested values as names with slashes: numbers and texts as they are, lists as text, without nulls."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif value is not None:
            plain = value if isinstance(value, int | float | str) else json.dumps(value)
            yield f"{prefix}{name}", plain
