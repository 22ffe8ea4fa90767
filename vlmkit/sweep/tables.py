"""Rows to tables: one line a run as CSV, one line a combination as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from vlmkit.checkpoint import write_text
from vlmkit.sweep.measure import (
    ALL_PARTS,
    BLIND,
    CONNECTOR,
    EXACT,
    FEATURES,
    MEMORY,
    SECONDS,
    SEEN,
    SPEED,
    TOKENS,
    Row,
)
from vlmkit.sweep.values import Values, as_text, labels, shown

SHARES = (EXACT, BLIND)
LAST = (BLIND, TOKENS, SEEN, CONNECTOR, ALL_PARTS, SPEED, MEMORY, SECONDS, FEATURES)


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds of a combination."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Combined:
    """The rows of one combination.

    Attributes:
        varied: What distinguishes it.
        tuned: What it was tuned to.
        rows: One a seed, finished or not.
        figures: Over the finished ones.
    """

    varied: Values
    tuned: Values
    rows: Sequence[Row]
    figures: Mapping[str, Spread]


def combine(rows: Iterable[Row]) -> list[Combined]:
    """Rows of the same values together, in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(as_text({**row.varied, **row.tuned}), []).append(row)
    return [Combined(own[0].varied, own[0].tuned, own, _spread(own)) for own in groups.values()]


def _spread(rows: Sequence[Row]) -> dict[str, Spread]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.figures.items():
            found.setdefault(name, []).append(value)
    return {name: Spread(fmean(values), min(values), max(values)) for name, values in found.items()}


def columns(rows: Sequence[Row]) -> list[str]:
    """Names of the figures that any row has, in the order of the tables."""
    there = {name for row in rows for name in row.figures}
    kinds = sorted(name for name in there if name.startswith(f"{EXACT}, "))
    return [name for name in (EXACT, *kinds, *LAST) if name in there]


def csv_table(rows: Sequence[Row]) -> str:
    """One line a run, figures as they were read: shares between 0 and 1, memory in 10^6 bytes."""
    varied, tuned = keys(row.varied for row in rows), keys(row.tuned for row in rows)
    figures = columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *varied, *tuned, "seed", *figures, "status", "error"])
    for row in rows:
        own = [_cell(row.varied, key) for key in varied] + [_cell(row.tuned, key) for key in tuned]
        read = [row.figures.get(name, "") for name in figures]
        writer.writerow([row.name, *own, row.seed, *read, row.status, row.error])
    return text.getvalue()


def markdown_table(rows: Sequence[Row]) -> str:
    """One line a combination: mean over the seeds, and from the smallest to the largest."""
    varied, tuned = keys(row.varied for row in rows), keys(row.tuned for row in rows)
    figures = columns(rows)
    short = labels([*varied, *tuned])
    lines = [[*(short[key] for key in (*varied, *tuned)), *figures, "runs"]]
    for group in combine(rows):
        own = [_shown(group.varied, key) for key in varied] + [_shown(group.tuned, key) for key in tuned]
        read = [_figure(name, group.figures.get(name)) for name in figures]
        lines.append([*own, *read, _runs(group)])
    lines.insert(1, ["---"] * (len(varied) + len(tuned)) + ["---:"] * (len(figures) + 1))
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def write_tables(folder: Path, name: str, rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Write NAME.csv and NAME.md, the latter with notes below the table."""
    below = "".join(f"\n{note}\n" for note in [*notes, *_stored(rows), *_failures(rows)])
    for ending, text in ((".csv", csv_table(rows)), (".md", markdown_table(rows) + below)):
        write_text(folder / f"{name}{ending}", text)


def _failures(rows: Sequence[Row]) -> list[str]:
    return [f"{row.name} failed: {row.error}" for row in rows if row.failed]


def _stored(rows: Sequence[Row]) -> list[str]:
    """What the speed of runs is without; they may differ in it, where features had no room."""
    used = [row for row in rows if FEATURES in row.figures]
    finished = sum(row.status == "finished" for row in rows)
    note = (
        f"{len(used)} of {finished} runs have stored features of frozen encoders: their images/s and "
        "training s are those of the steps without frozen encoders. The time for the features is in "
        f"{FEATURES}; the first run encodes and the next ones read, so it compares no runs."
    )
    return [note] if used else []


def keys(values: Iterable[Values]) -> list[str]:
    """All keys, in order of appearance."""
    return list(dict.fromkeys(key for own in values for key in own))


def _cell(values: Values, key: str) -> str:
    value = values.get(key, "")
    return value if isinstance(value, str) else as_text(value)


def _shown(values: Values, key: str) -> str:
    return shown(values[key]) if key in values else ""


def _runs(group: Combined) -> str:
    done = sum(row.status == "finished" for row in group.rows)
    failed = sum(row.failed for row in group.rows)
    total = len(group.rows)
    return f"{done}/{total}" + (f", {failed} failed" if failed else "")


def _figure(name: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    mean, low, high = (number(name, v) for v in (spread.mean, spread.low, spread.high))
    return mean if low == high else f"{mean} ({low} to {high})"


def number(name: str, value: float) -> str:
    """A figure as it is read: shares in percent, small numbers with decimals."""
    if name.startswith(SHARES):
        return f"{value:.2%}"
    return f"{value:,.1f}" if value < 100 and value != int(value) else f"{value:,.0f}"
