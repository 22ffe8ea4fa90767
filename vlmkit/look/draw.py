"""Panels to one PNG. matplotlib without its global state; every length here is in inches."""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.errors import MissingExtraError, UsageError
from vlmkit.look.panels import Panel

# Pixels of the PNG an inch.
DPI = 110
WIDTH = 16.0
MARGIN, GAP, HEADER = 0.3, 0.35, 0.75
# However flat the views are, a picture of another kind has this height.
LEAST = 2.4
# Room for a title's lines, and at the right of a picture for its scale.
LINE, TITLE_SIZE, SCALE = 0.19, 10.5, 0.95
BAR = 0.16
# Characters of a title an inch, at its size; measured with room to spare.
LETTERS = 11.5
HEADER_LETTERS = 10.0
# Colours that are told apart with every kind of colour vision, and lightness that rises with the number.
COLOURS = "viridis"
MARK = "#ff2d95"


def require_plots() -> None:
    """Check that pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "train")


def draw(panels: Sequence[Panel], roles: Sequence[str], header: str, path: Path) -> None:
    """Write the panels to a PNG of about 1,760 pixels in width.

    Args:
        panels: At least one.
        roles: Of the views, see `View.role`.
        header: Written above all.
        path: Ends in `.png`.

    Raises:
        UsageError: It does not.
        MissingExtraError: matplotlib is not installed.
    """
    require_plots()
    from matplotlib.figure import Figure

    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG; give a name that ends in .png")
    shape = _shape(panels)
    cols = _columns(len(panels), shape)
    width = (WIDTH - 2 * MARGIN - GAP * (cols - 1)) / cols
    picture = (width - SCALE, max(LEAST, (width - SCALE) * shape))
    titles = [textwrap.wrap(panel.title, int(width * LETTERS)) for panel in panels]
    title_room = LINE * max(len(lines) for lines in titles) + 0.12
    rows = math.ceil(len(panels) / cols)
    cell = title_room + picture[1]
    height = HEADER + rows * cell + (rows - 1) * GAP + MARGIN
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    head = "\n".join(textwrap.wrap(header, int(WIDTH * HEADER_LETTERS), max_lines=2))
    _write(figure, MARGIN, height - 0.15, head, 12.5, height)
    for i, (panel, lines) in enumerate(zip(panels, titles)):
        left = MARGIN + (i % cols) * (width + GAP)
        top = height - HEADER - (i // cols) * (cell + GAP)
        _write(figure, left, top, "\n".join(lines), TITLE_SIZE, height)
        _panel(figure, panel, roles, (left, top - title_room, *picture), height)
    figure.savefig(path, format="png")


def _write(figure: Any, left: float, top: float, text: str, size: float, height: float) -> None:
    # Dollar signs in questions and file names are no formulas.
    figure.text(left / WIDTH, top / height, text, fontsize=size, va="top", linespacing=1.25, parse_math=False)


def _shape(panels: Sequence[Panel]) -> float:
    """Height over width of the room for a picture, for the tallest panel of views."""
    shapes = [1.0]
    for panel in panels:
        if panel.views:
            down, across = _beside(len(panel.tiles))
            highest = max(tile.shape[0] for tile in panel.tiles) * down
            widest = max(tile.shape[1] for tile in panel.tiles) * across
            shapes.append(highest / widest)
    return min(max(shapes[1:] or shapes), 3.0)


def _columns(count: int, shape: float) -> int:
    """Wide pictures get more of the width, and tall ones less."""
    most = 1 if shape < 0.2 else 2 if shape < 0.5 else 4 if shape < 1.5 else 5
    return min(most, count if count <= 3 else math.ceil(count / math.ceil(count / most)))


def _beside(views: int) -> tuple[int, int]:
    """Rows and columns in which views are put."""
    across = math.ceil(math.sqrt(views))
    return math.ceil(views / across), across


def _panel(
    figure: Any, panel: Panel, roles: Sequence[str], room: tuple[float, float, float, float], height: float
) -> None:
    """Draw the tiles of a panel below `room`'s top: (left, top, width, height)."""
    left, top, wide, high = room
    down, across = _beside(len(panel.tiles))
    step_x, step_y = wide / across, high / down
    low, most = _range(panel)
    for i, tile in enumerate(panel.tiles):
        x, y = left + (i % across) * step_x, top - (i // across + 1) * step_y
        # Several views have their number above them.
        label = 0.2 if len(panel.tiles) > 1 else 0.0
        inner = 0.94 if len(panel.tiles) > 1 else 1.0
        box = (x / WIDTH, y / height, step_x * inner / WIDTH, (step_y - label) / height)
        axes = figure.add_axes(box, anchor="NW", xticks=[], yticks=[])
        shown = axes.imshow(
            tile, cmap=COLOURS, vmin=low, vmax=most, interpolation="nearest", extent=_extent(panel, tile)
        )
        axes.set_facecolor("white")
        if label:
            axes.set_title(f"view {i + 1}: {roles[i]}", fontsize=8.5, loc="left", pad=2)
        _lines(axes, panel, tile)
        if panel.mark is not None and panel.mark.view == i:
            _mark(axes, panel)
        if not panel.views:
            for side in axes.spines.values():
                side.set_visible(False)
    if panel.scale is not None:
        if len(panel.tiles) == 1:
            shape = panel.tiles[0].shape[0] / panel.tiles[0].shape[1]
            wide, high = min(wide, high / shape), min(high, wide * shape)
        bar_box = ((left + wide + 0.1) / WIDTH, (top - high) / height, BAR / WIDTH, high / height)
        bar = figure.colorbar(shown, cax=figure.add_axes(bar_box))
        bar.set_label(panel.scale, fontsize=9)
        bar.ax.tick_params(labelsize=8.5)


def _range(panel: Panel) -> tuple[float | None, float | None]:
    if panel.scale is None:
        return None, None
    low = min(float(np.nanmin(tile)) for tile in panel.tiles if np.isfinite(tile).any())
    most = max(float(np.nanmax(tile)) for tile in panel.tiles if np.isfinite(tile).any())
    return low, most


def _extent(panel: Panel, tile: Any) -> tuple[float, float, float, float]:
    return 0, tile.shape[1] * panel.cell, tile.shape[0] * panel.cell, 0


def _lines(axes: Any, panel: Panel, tile: Any) -> None:
    if panel.grid:
        for x in range(panel.grid, tile.shape[1], panel.grid):
            axes.axvline(x, color="0.5", linewidth=0.6, alpha=0.55)
        for y in range(panel.grid, tile.shape[0], panel.grid):
            axes.axhline(y, color="0.5", linewidth=0.6, alpha=0.55)


def _mark(axes: Any, panel: Panel) -> None:
    """A frame around a patch, light within dark, so that it is seen on every colour."""
    from matplotlib.patches import Rectangle

    assert panel.mark is not None
    corner = (panel.mark.col * panel.cell, panel.mark.row * panel.cell)
    for colour, width in (("black", 4.0), (MARK, 2.0)):
        frame = Rectangle(corner, panel.cell, panel.cell, fill=False, edgecolor=colour, linewidth=width)
        axes.add_patch(frame)
