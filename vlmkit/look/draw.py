"""Panels to one PNG. matplotlib without its global state; every length here is in inches."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmkit.errors import MissingExtraError, UsageError
from vlmkit.look.arrange import GAP, MARGIN, WIDTH, arrange, beside
from vlmkit.look.panel import Panel

# Pixels of the PNG an inch.
DPI = 110
HEADER = 0.75
# However flat the views are, a picture of another kind has this height.
LEAST = 2.4
# A title's line, and sizes of letters in points.
LINE = 0.19
TITLE_SIZE, HEADER_SIZE = 10.5, 12.5
BAR = 0.16
# Characters of a title an inch, at its size; measured with room to spare.
LETTERS = 11.5
HEADER_LETTERS = 10.0
# Colours that are told apart with every kind of colour vision, and lightness that rises with the number.
COLOURS = "viridis"
MARK = "#ff2d95"


class Room(NamedTuple):
    """Where a picture goes: its upper left corner, from the left and from below, and its size."""

    left: float
    top: float
    width: float
    height: float


def require_plots() -> None:
    """Check that pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "train")


def draw(panels: Sequence[Panel], roles: Sequence[str], header: str, path: Path) -> None:
    """Write the panels to a PNG of 1,760 pixels in width.

    Args:
        panels: At least one.
        roles: Of the views, see `View.role`.
        header: Written above all.
        path: Ends in `.png`.

    Raises:
        UsageError: It does not.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG; give a name that ends in .png")
    compose(panels, roles, header).savefig(path, format="png")


def compose(panels: Sequence[Panel], roles: Sequence[str], header: str) -> Any:
    """The matplotlib figure that `draw` writes; see there."""
    require_plots()
    from matplotlib.figure import Figure

    rows, (wide, high), step = arrange(panels)
    titles = [[textwrap.wrap(panel.title, int(step * LETTERS)) for panel in row] for row in rows]
    title_rooms = [LINE * max(map(len, row)) + 0.12 for row in titles]
    picture_rooms = [high if all(panel.views for panel in row) else max(high, LEAST) for row in rows]
    height = HEADER + sum(title_rooms) + sum(picture_rooms) + (len(rows) - 1) * GAP + MARGIN
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    head = "\n".join(textwrap.wrap(header, int(WIDTH * HEADER_LETTERS), max_lines=2))
    _write(figure, MARGIN, height - 0.15, head, HEADER_SIZE)
    top = height - HEADER
    for row, lines, title_room, picture_room in zip(rows, titles, title_rooms, picture_rooms):
        for i, panel in enumerate(row):
            left = MARGIN + i * (step + GAP)
            _write(figure, left, top, "\n".join(lines[i]), TITLE_SIZE)
            room = Room(left, top - title_room, wide, high if panel.views else picture_room)
            _panel(figure, panel, roles, room)
        top -= title_room + picture_room + GAP
    return figure


def _write(figure: Any, left: float, top: float, text: str, size: float) -> None:
    # Dollar signs in questions and file names are no formulas.
    place = left / WIDTH, top / figure.get_figheight()
    figure.text(*place, text, fontsize=size, va="top", linespacing=1.25, parse_math=False)


def _panel(figure: Any, panel: Panel, roles: Sequence[str], room: Room) -> None:
    """Draw the tiles of a panel, from the upper left of its room, and the scale of its numbers."""
    height = figure.get_figheight()
    down, across = beside(len(panel.tiles))
    step_x, step_y = room.width / across, room.height / down
    # Several views have their number above them, and gaps between.
    label, inner = (0.2, 0.94) if len(panel.tiles) > 1 else (0.0, 1.0)
    low, most = _range(panel)
    for i, tile in enumerate(panel.tiles):
        x, y = room.left + (i % across) * step_x, room.top - (i // across + 1) * step_y
        box = (x / WIDTH, y / height, step_x * inner / WIDTH, (step_y - label) / height)
        axes = figure.add_axes(box, anchor="NW", xticks=[], yticks=[])
        extent = (0, tile.shape[1] * panel.cell, tile.shape[0] * panel.cell, 0)
        shown = axes.imshow(tile, cmap=COLOURS, vmin=low, vmax=most, interpolation="nearest", extent=extent)
        axes.spines[:].set_visible(panel.views)
        if label:
            axes.set_title(f"view {i + 1}: {roles[i]}", fontsize=8.5, loc="left", pad=2)
        _lines(axes, panel, tile)
        if panel.mark is not None and panel.mark.view == i:
            _mark(axes, panel)
    if panel.scale is not None:
        _bar(figure, panel, shown, room)


def _bar(figure: Any, panel: Panel, shown: Any, room: Room) -> None:
    """The scale, right of the picture and as high as it."""
    wide, high, height = room.width, room.height, figure.get_figheight()
    if len(panel.tiles) == 1:
        shape = panel.tiles[0].shape[0] / panel.tiles[0].shape[1]
        wide, high = min(wide, high / shape), min(high, wide * shape)
    box = ((room.left + wide + 0.1) / WIDTH, (room.top - high) / height, BAR / WIDTH, high / height)
    bar = figure.colorbar(shown, cax=figure.add_axes(box))
    bar.set_label(panel.scale, fontsize=9)
    bar.ax.tick_params(labelsize=8.5)


def _range(panel: Panel) -> tuple[float | None, float | None]:
    if panel.scale is None:
        return None, None
    low = min(float(np.nanmin(tile)) for tile in panel.tiles if np.isfinite(tile).any())
    most = max(float(np.nanmax(tile)) for tile in panel.tiles if np.isfinite(tile).any())
    return low, most


def _lines(axes: Any, panel: Panel, tile: Any) -> None:
    """The borders of patches: light lines over wider dark ones, so that they are seen on every colour."""
    for colour, width in (("black", 1.2), ("white", 0.5)) if panel.grid else ():
        for x in range(panel.grid, tile.shape[1], panel.grid):
            axes.axvline(x, color=colour, linewidth=width, alpha=0.55)
        for y in range(panel.grid, tile.shape[0], panel.grid):
            axes.axhline(y, color=colour, linewidth=width, alpha=0.55)


def _mark(axes: Any, panel: Panel) -> None:
    """A frame around a patch, light within dark, so that it is seen on every colour."""
    from matplotlib.patches import Rectangle

    assert panel.mark is not None
    corner = (panel.mark.col * panel.cell, panel.mark.row * panel.cell)
    for colour, width in (("black", 3.5), (MARK, 1.8)):
        frame = Rectangle(corner, panel.cell, panel.cell, fill=False, edgecolor=colour, linewidth=width)
        axes.add_patch(frame)
