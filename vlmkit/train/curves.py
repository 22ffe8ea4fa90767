"""`curves.png`: what `metrics.jsonl` says, a column for each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.objectives import OBJECTIVES
from vlmkit.train.metrics import read_metrics, require_plots

# Colours that colour-blind readers tell apart (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#777777"
ALL = "all"
# Inches of a column, and of what stands above and below the panels.
WIDTH, FRAME = 6.2, 0.9
Rows = Sequence[Mapping[str, Any]]
Curves = dict[str, list[float | None]]


@dataclass(frozen=True)
class Panel:
    """One panel of a stage.

    Attributes:
        label: Of its axis.
        curves: Rows of a stage to its curves by name; empty for a stage that has none.
        height: Inches.
        log: Whether the axis is logarithmic where values differ much.
        share: Whether values are shares of 1.
    """

    label: str
    curves: Callable[[Rows], Curves]
    height: float = 1.3
    log: bool = False
    share: bool = False


def plot_metrics(path: Path, picture: Path) -> None:
    """Losses, gradients, learning rate and speed of every stage, as a PNG.

    Args:
        path: `metrics.jsonl`.
        picture: Where to draw.
    """
    require_plots()
    from matplotlib.figure import Figure

    stages: dict[str, list[dict[str, Any]]] = {}
    for row in read_metrics(path):
        stages.setdefault(row["stage"], []).append(row)
    panels = {name: [panel for panel in PANELS if panel.curves(rows)] for name, rows in stages.items()}
    height = max((_height(own) for own in panels.values()), default=0.0)
    figure = Figure(figsize=(WIDTH * max(1, len(stages)), FRAME + height), layout="constrained")
    columns = figure.subfigures(1, max(1, len(stages)), squeeze=False)[0]
    for column, (name, rows) in zip(columns, stages.items()):
        _draw_stage(column, name, panels[name], rows, height)
    figure.savefig(picture, dpi=120)


def _height(panels: Sequence[Panel]) -> float:
    return sum(panel.height for panel in panels)


def _draw_stage(column: Any, name: str, panels: Sequence[Panel], rows: Rows, height: float) -> None:
    """A stage's panels from the top down; one that has fewer than another leaves room below."""
    heights = [*(panel.height for panel in panels), max(height - _height(panels), 1e-3)]
    *places, rest = column.subplots(len(heights), 1, height_ratios=heights)
    rest.set_axis_off()
    for axes, panel in zip(places, panels):
        _draw(axes, panel, panel.curves(rows), [row["step"] for row in rows])
        axes.sharex(places[0])
        axes.tick_params(labelbottom=axes is places[-1])
    places[0].set_title(f"stage {name}", fontsize=11, fontweight="bold")
    places[-1].set_xlabel("step")
    places[-1].xaxis.get_major_locator().set_params(integer=True)
    column.align_ylabels(places)


def _draw(axes: Any, panel: Panel, curves: Curves, steps: Sequence[int]) -> None:
    """The curves of a stage: each step thin, and over many steps a running mean."""
    window = len(steps) // 50
    for i, (name, values) in enumerate(curves.items()):
        found = [(step, value) for step, value in zip(steps, values) if value is not None]
        xs, ys = [step for step, _ in found], [value for _, value in found]
        style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.5}
        # The sum lies behind its parts.
        style |= {"color": GREY, "linestyle": "--", "zorder": 1} if name == ALL else {}
        if window > 1:
            axes.plot(xs, ys, color=style["color"], linewidth=0.7, alpha=0.3)
            ys = running_mean(ys, window)
        # A point alone is no line.
        axes.plot(xs, ys, label=name, marker="o" if len(xs) == 1 else None, markersize=4, **style)
    _scale(axes, panel, [value for own in curves.values() for value in own if value is not None])
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.3, linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(curves) > 1 or panel.label not in curves:
        beside = {"bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
        axes.legend(loc="upper left", frameon=False, fontsize=9, **beside)


def _scale(axes: Any, panel: Panel, values: Sequence[float]) -> None:
    """A logarithmic axis has plain numbers; one that would show hardly any is linear."""
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

    low, high = min(values, default=0.0), max(values, default=0.0)
    if panel.log and low > 0 and high / low > 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif not panel.log:
        axes.set_ylim(0, 1.08 * high or 1.0)
    if panel.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window - 1` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stops = np.arange(1, len(values) + 1)
    starts = np.maximum(0, stops - window)
    means: list[float] = ((sums[stops] - sums[starts]) / (stops - starts)).tolist()
    return means


def _losses(rows: Rows) -> Curves:
    return {name: _column(rows, name) for name in OBJECTIVES if name in rows[0]}


def _nested(key: str) -> Callable[[Rows], Curves]:
    """Curves of a figure that is told for each of several names."""

    def curves(rows: Rows) -> Curves:
        names = list(dict.fromkeys(name for row in rows for name in row.get(key, {})))
        return {name: [row.get(key, {}).get(name) for row in rows] for name in names}

    return curves


def _norms(rows: Rows) -> Curves:
    parts = _nested("grad_norms")(rows)
    return parts if len(parts) == 1 else {**parts, ALL: _column(rows, "grad_norm")}


def _rate(rows: Rows) -> Curves:
    return {"lr factor": _column(rows, "lr")}


def _alone(key: str, label: str) -> Callable[[Rows], Curves]:
    return lambda rows: {label: _column(rows, key)} if any(row.get(key) for row in rows) else {}


def _column(rows: Rows, key: str) -> list[float | None]:
    return [row.get(key) for row in rows]


PANELS = (
    Panel("loss", _losses, height=2.6, log=True),
    Panel("loss by source", _nested("source_loss"), height=2.0, log=True),
    Panel("gradient norm", _norms, height=2.0, log=True),
    Panel("lr factor", _rate),
    Panel("tokens/s", _alone("tokens_per_second", "tokens/s")),
    Panel("images/s", _alone("images_per_second", "images/s")),
    Panel("padding", _alone("padding", "padding"), share=True),
    Panel("MFU", _alone("mfu", "MFU"), share=True),
)
