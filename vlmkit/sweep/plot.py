"""The picture of a sweep: accuracy with its spread beside what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmkit.sweep.measure import EXACT, Row
from vlmkit.sweep.panels import accuracy_curves, accuracy_dots, cost_bars, costs_of
from vlmkit.sweep.tables import Combined, combine, keys
from vlmkit.sweep.values import Values, as_text, labels, shown
from vlmkit.train.curves import COLOURS

# Inches: of the curves, of a line of bars, and of what stands above and below lines.
CURVES, LINE, FRAME, WIDTH = 4.6, 0.36, 1.0, 14.0


def plot_sweep(rows: Sequence[Row], picture: Path) -> None:
    """Draw the finished runs as a PNG; draws nothing where none is finished.

    The first key that varies over several numbers becomes the axis of the accuracy panel, with a curve for
    each combination of the other keys; the cost panels then show the runs with its largest number.
    """
    groups = [group for group in combine(rows) if group.figures]
    if not groups:
        return
    axis = _numeric(groups)
    if axis is None:
        _without_axis(groups, picture)
    else:
        _with_axis(groups, axis, picture)


def _without_axis(groups: Sequence[Combined], picture: Path) -> None:
    """Panels side by side, a line for each combination."""
    from matplotlib.figure import Figure

    costs = costs_of(groups)
    scored = any(EXACT in group.figures for group in groups)
    figure = Figure(figsize=(WIDTH, FRAME + LINE * len(groups)), layout="constrained")
    widths = [2.2] * scored + [1.0] * len(costs)
    panels = list(figure.subplots(1, len(widths), width_ratios=widths, sharey=True, squeeze=False)[0])
    names = [_name(group.varied) for group in groups]
    if scored:
        accuracy_dots(panels.pop(0), groups, names)
    for panel, cost in zip(panels, costs):
        cost_bars(panel, groups, names, cost, [COLOURS[0]])
    figure.savefig(picture, dpi=120)


def _with_axis(groups: Sequence[Combined], axis: str, picture: Path) -> None:
    """Curves above, costs below."""
    from matplotlib.figure import Figure

    curves: dict[str, list[Combined]] = {}
    for group in sorted(groups, key=lambda own: float(own.varied[axis])):
        curves.setdefault(_name(_without(group.varied, axis)), []).append(group)
    largest = max(group.varied[axis] for group in groups)
    several = len(curves) > 1
    at = [g for g in groups if g.varied[axis] == largest] if several else list(groups)
    names = [_name(_without(g.varied, axis) if several else g.varied) for g in at]
    short = labels(keys(group.varied for group in groups))[axis]

    below = FRAME + 0.3 + LINE * len(at)
    figure = Figure(figsize=(WIDTH, CURVES + below), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[CURVES, below])
    top, bottom = parts
    accuracy_curves(top.subplots(), curves, axis, short)
    costs = costs_of(at)
    # Each bar in the colour of its curve.
    colours = [COLOURS[list(curves).index(n) % len(COLOURS)] for n in names] if several else [COLOURS[0]]
    panels = bottom.subplots(1, len(costs), sharey=True, squeeze=False)
    for panel, cost in zip(panels[0], costs):
        cost_bars(panel, at, names, cost, colours)
    if several:
        bottom.suptitle(f"costs at {short} {shown(largest)}", fontsize=11)
    figure.savefig(picture, dpi=120)


def _numeric(groups: Sequence[Combined]) -> str | None:
    """The first key whose values are several numbers and nothing else, where there are scores to draw."""
    if not any(EXACT in group.figures for group in groups):
        return None
    for key in keys(group.varied for group in groups):
        values = [group.varied[key] for group in groups]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if numbers and len({as_text(v) for v in values}) > 1:
            return key
    return None


def _without(varied: Values, key: str) -> Values:
    return {name: value for name, value in varied.items() if name != key}


def _name(varied: Values) -> str:
    """A combination in words: a text alone says what it is, a number needs its key."""
    short = labels(list(varied))
    named = [shown(v) if isinstance(v, str | dict) else f"{short[k]} {shown(v)}" for k, v in varied.items()]
    return ", ".join(named) or "the recipe"
