"""How panels share the width of a picture; every length here is in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmkit.look.panel import Panel

WIDTH = 16.0
MARGIN, GAP = 0.3, 0.35
# Room for a scale, at the right of a picture.
SCALE = 0.95
# The tallest picture, as height over width.
TALLEST = 3.0


def arrange(panels: Sequence[Panel]) -> tuple[list[Sequence[Panel]], tuple[float, float], float]:
    """Rows of panels, the size of a picture of views, and the width of a panel with its scale."""
    shape = _shape(panels)
    cols = _columns(len(panels), shape, max(len(panel.tiles) for panel in panels))
    step = (WIDTH - 2 * MARGIN - GAP * (cols - 1)) / cols
    wide = step - SCALE
    return [panels[i : i + cols] for i in range(0, len(panels), cols)], (wide, wide * shape), step


def _shape(panels: Sequence[Panel]) -> float:
    """Height over width of the room for a picture, for the tallest panel of views."""
    shapes = [1.0]
    for panel in panels:
        if panel.views:
            down, across = beside(len(panel.tiles))
            highest = max(tile.shape[0] for tile in panel.tiles) * down
            widest = max(tile.shape[1] for tile in panel.tiles) * across
            shapes.append(highest / widest)
    return min(max(shapes[1:] or shapes), TALLEST)


def _columns(count: int, shape: float, views: int) -> int:
    """Wide pictures and pictures of several views get more of the width, tall ones less."""
    most = 1 if shape < 0.2 else 2 if shape < 0.5 or views > 1 else 4 if shape < 1.5 else 5
    least = 1 if shape < 0.5 else 2 if shape < 1.5 else 4
    return min(most, max(least, count if count <= 3 else math.ceil(count / math.ceil(count / most))))


def beside(views: int) -> tuple[int, int]:
    """Rows and columns in which views are put."""
    across = math.ceil(math.sqrt(views))
    return math.ceil(views / across), across
