"""The panels of a sweep's picture; each draws into axes that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.sweep.measure import BLIND, CONNECTOR, EXACT, MEMORY, SEEN, SPEED, TOKENS
from vlmkit.sweep.tables import Combined, Spread, number
from vlmkit.train.curves import COLOURS, GREY

MARKERS = "osD^vPX*"
TITLES = {
    TOKENS: "tokens per image",
    SEEN: "tokens looked at",
    CONNECTOR: "connector parameters",
    SPEED: "images/s in training",
    MEMORY: "peak memory, MB",
}
SCORE = "exact match, %"
SCORE_TITLE = "exact match (line: smallest to largest seed)"


def costs_of(groups: Sequence[Combined]) -> list[str]:
    """Figures with a panel; tokens that are looked at have one where they are not those of the sequence."""
    there = [name for name in TITLES if any(name in group.figures for group in groups)]
    same = all(group.figures.get(SEEN) == group.figures.get(TOKENS) for group in groups)
    return [name for name in there if name != SEEN or not same]


def accuracy_dots(axes: Any, groups: Sequence[Combined], names: Sequence[str]) -> None:
    """A line for each combination: mean, spread, and the blind score."""
    for place, group in enumerate(groups):
        score, blind = group.figures.get(EXACT), group.figures.get(BLIND)
        if blind is not None:
            axes.plot([100 * blind.mean], [place], "|", color=GREY, markersize=16, markeredgewidth=2)
        if score is not None:
            mean, around = _percent(score)
            axes.errorbar([mean], [place], xerr=around, fmt="o", color=COLOURS[0], capsize=4)
            at = (mean + around[1][0], place)
            axes.annotate(f"{mean:.1f}", at, (7, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_title(SCORE_TITLE, fontsize=10)
    blind_too = any(BLIND in group.figures for group in groups)
    axes.set_xlabel(SCORE + " (grey: with a blank image)" * blind_too)
    low, high = axes.get_xlim()
    # Room for the numbers.
    axes.set_xlim(low, high + 0.12 * (high - low))
    axes.grid(axis="x", alpha=0.3)
    _lines(axes, names)


def accuracy_curves(axes: Any, curves: Mapping[str, Sequence[Combined]], key: str, short: str) -> None:
    """Mean and spread over a number that varies, a curve for each combination of the other keys."""
    for i, (name, groups) in enumerate(curves.items()):
        scored = [group for group in groups if EXACT in group.figures]
        places = [group.varied[key] for group in scored]
        spreads = [group.figures[EXACT] for group in scored]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(places, [100 * s.mean for s in spreads], label=name, linewidth=1.8, markersize=6, **style)
        low, high = [100 * s.low for s in spreads], [100 * s.high for s in spreads]
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
    groups = [group for own in curves.values() for group in own]
    _blind_band(axes, [group.figures[BLIND] for group in groups if BLIND in group.figures])
    axes.set_xticks(sorted({group.varied[key] for group in groups}))
    axes.set(xlabel=short, ylabel=SCORE)
    axes.set_title(SCORE_TITLE.replace("line", "band"), fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def _blind_band(axes: Any, blind: Sequence[Spread]) -> None:
    """What questions alone give away, over all runs."""
    if not blind:
        return
    mean = sum(spread.mean for spread in blind) / len(blind)
    axes.axhline(100 * mean, color=GREY, linestyle="--", linewidth=1.5, label="blank image, all runs")
    low, high = min(s.low for s in blind), max(s.high for s in blind)
    axes.axhspan(100 * low, 100 * high, color=GREY, alpha=0.12, linewidth=0)


def cost_bars(
    axes: Any, groups: Sequence[Combined], names: Sequence[str], cost: str, colours: Sequence[str]
) -> None:
    """A bar for each combination with its number; the colours come again where there are more bars."""
    means = [group.figures[cost].mean if cost in group.figures else 0.0 for group in groups]
    own = [colours[i % len(colours)] for i in range(len(groups))]
    axes.barh(range(len(groups)), means, color=own, alpha=0.75, height=0.62)
    for place, group in enumerate(groups):
        text = number(cost, group.figures[cost].mean) if cost in group.figures else "not known"
        at = (means[place], place)
        axes.annotate(text, at, (3, 0), textcoords="offset points", va="center", fontsize=9)
    # Room for the numbers.
    axes.set_xlim(0, 1.6 * (max(means) or 1.0))
    axes.set_xticks([])
    axes.set_title(TITLES[cost], fontsize=10)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    _lines(axes, names)


def _lines(axes: Any, names: Sequence[str]) -> None:
    """The names of the lines, the first one at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _percent(score: Spread) -> tuple[float, list[list[float]]]:
    """Mean, and the distances to the smallest and largest."""
    mean = 100 * score.mean
    # Rounding may put a mean outside of its own spread by a hair.
    return mean, [[max(0.0, mean - 100 * score.low)], [max(0.0, 100 * score.high - mean)]]
