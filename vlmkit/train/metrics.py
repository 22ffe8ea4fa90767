"""`metrics.jsonl`, and the protocol by which the loop tells of its progress."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlmkit.checkpoint import write_text
from vlmkit.errors import MissingExtraError, VlmkitError
from vlmkit.train.stage import PartRow

# Figures of a step that another run of the same recipe does not repeat: they depend on the machine.
VOLATILE = (
    "seconds",
    "data_seconds",
    "features_seconds",
    "tokens_per_second",
    "images_per_second",
    "peak_bytes",
    "mfu",
    "probe_seconds",
)


class Reporter(Protocol):
    """Told of what happens; the command line draws it, tests collect it."""

    def stage(self, name: str, rows: Sequence[PartRow], note: str) -> None:
        """A stage is set up: what trains, at which rate, in which precision."""
        ...

    def begin(self, name: str, start: int, steps: int) -> None:
        """The steps of a stage begin."""
        ...

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """One step is done."""
        ...

    def end(self) -> None:
        """The stage is done."""
        ...

    def working(self, what: str, done: int, total: int) -> None:
        """Another piece of work (evaluation) goes on."""
        ...

    def note(self, text: str) -> None:
        """Something a reader of the log should know."""
        ...


class Silent:
    """A reporter that says nothing."""

    def stage(self, name: str, rows: Sequence[PartRow], note: str) -> None:
        """See `Reporter`."""

    def begin(self, name: str, start: int, steps: int) -> None:
        """See `Reporter`."""

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """See `Reporter`."""

    def end(self) -> None:
        """See `Reporter`."""

    def working(self, what: str, done: int, total: int) -> None:
        """See `Reporter`."""

    def note(self, text: str) -> None:
        """See `Reporter`."""


class MetricsFile:
    """One JSON line a step.

    Args:
        path: The file; it is appended to.
        active: Whether this process writes (only the main one does).
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; a number that JSON does not know (not finite) is null.

        Raises:
            VlmkitError: The file cannot be written: a full disk, say.
        """
        if not self.active:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(values), allow_nan=False) + "\n")
        except OSError as error:
            raise VlmkitError(
                f"{self.path} cannot be written ({error.strerror}); make room, then go on with --resume"
            ) from error

    def rewind(self, stage: str, step: int) -> int:
        """Drop a stage's lines after `step`: a resumed run writes them again. Returns how many those were.

        Raises:
            VlmkitError: A line is damaged.
        """
        if not self.active or not self.path.exists():
            return 0
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        return len(rows) - len(kept)


def _finite(value: Any) -> Any:
    """The same without numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(own) for name, own in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def repeatable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its `VOLATILE` figures: the same in every run of a recipe on a CPU."""
    return {name: value for name, value in row.items() if name not in VOLATILE}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows; a last line that a kill cut short is left out.

    Raises:
        VlmkitError: Another line is no JSON: what is behind it would be lost as well.
    """
    rows, lines = [], path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise VlmkitError(
                    f"{path} line {number} is damaged ({error}); repair it, or remove the line"
                ) from None
    return rows


def require_plots() -> None:
    """Check that plots can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "train")
