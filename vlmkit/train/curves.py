"""`curves.png`: what `metrics.jsonl` says, a column for each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.objectives import OBJECTIVES
from vlmkit.train.metrics import read_metrics, require_plots

# Colours that colour-blind readers tell apart (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#777777"
# Inches of a column, and of what stands above and below the panels.
WIDTH, FRAME = 6.2, 0.9
Rows = Sequence[Mapping[str, Any]]
Curves = dict[str, list[float | None]]


@dataclass(frozen=True)
class Panel:
    """One line of panels.

    Attributes:
        label: Of its axis.
        curves: Rows of a stage to its curves by name; empty for a stage that has none.
        height: Inches.
        log: Whether the axis is logarithmic.
    """

    label: str
    curves: Callable[[Rows], Curves]
    height: float = 1.7
    log: bool = False


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
    panels = [panel for panel in PANELS if any(panel.curves(rows) for rows in stages.values())]
    if not panels:
        return
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(WIDTH * len(stages), FRAME + sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), len(stages), sharex="col", squeeze=False, height_ratios=heights)
    for column, (name, rows) in enumerate(stages.items()):
        grid[0][column].set_title(f"stage {name}", fontsize=11, fontweight="bold")
        grid[-1][column].set_xlabel("step")
        for line, panel in enumerate(panels):
            _draw(grid[line][column], panel, rows)
    figure.savefig(picture, dpi=120)


def _draw(axes: Any, panel: Panel, rows: Rows) -> None:
    """The curves of a stage: each step thin, and over many steps a running mean."""
    curves = panel.curves(rows)
    if not curves:
        axes.set_axis_off()
        return
    steps = [row["step"] for row in rows]
    window = len(steps) // 50
    for i, (name, values) in enumerate(curves.items()):
        found = [(step, value) for step, value in zip(steps, values) if value is not None]
        xs, ys = [step for step, _ in found], [value for _, value in found]
        style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.5}
        if window > 1:
            axes.plot(xs, ys, color=style["color"], linewidth=0.7, alpha=0.3)
            ys = running_mean(ys, window)
        axes.plot(xs, ys, label=name, marker="o" if len(xs) == 1 else None, markersize=4, **style)
    axes.set_ylabel(panel.label)
    axes.set_yscale("log" if panel.log else "linear")
    if not panel.log:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3, which="both" if panel.log else "major", linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(curves) > 1 or panel.label not in curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, frameon=False, fontsize=9)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window - 1` before it."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def _losses(rows: Rows) -> Curves:
    return {name: _column(rows, name) for name in OBJECTIVES if name in rows[0]}


def _nested(key: str) -> Callable[[Rows], Curves]:
    """Curves of a figure that is told for each of several names; one name alone is told elsewhere."""

    def curves(rows: Rows) -> Curves:
        names = list(dict.fromkeys(name for row in rows for name in row.get(key, {})))
        return {name: [row.get(key, {}).get(name) for row in rows] for name in names}

    return curves


def _norms(rows: Rows) -> Curves:
    parts = _nested("grad_norms")(rows)
    return parts if len(parts) == 1 else {**parts, "all": _column(rows, "grad_norm")}


def _rate(rows: Rows) -> Curves:
    return {"lr factor": _column(rows, "lr")}


def _speed(key: str, label: str) -> Callable[[Rows], Curves]:
    return lambda rows: {label: _column(rows, key)} if any(row.get(key) for row in rows) else {}


def _column(rows: Rows, key: str) -> list[float | None]:
    return [row.get(key) for row in rows]


PANELS = (
    Panel("loss", _losses, height=2.8, log=True),
    Panel("loss by source", _nested("source_loss"), height=2.2, log=True),
    Panel("gradient norm", _norms, height=2.2, log=True),
    Panel("lr factor", _rate, height=1.3),
    Panel("tokens/s", _speed("tokens_per_second", "tokens/s"), height=1.4),
    Panel("images/s", _speed("images_per_second", "images/s"), height=1.4),
    Panel("padding", _speed("padding", "padding"), height=1.2),
    Panel("MFU", _speed("mfu", "MFU"), height=1.2),
)
