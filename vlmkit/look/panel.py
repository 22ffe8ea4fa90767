"""What users choose, and what a panel is: arrays and words, nothing is drawn here.

Rows and columns, layers, heads and answer tokens count from 1 in what users read and give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlmkit.look.place import Place

Floats = NDArray[np.float32]
Source = Literal["prefix", "mean", "at"]


@dataclass(frozen=True)
class Options:
    """What to show; None for the default.

    Attributes:
        head: Attention head of the encoder; without it the mean of all.
        layer: Its attention layer; without it, and without a head, rollout over all.
        source: Whose attention: of the first `prefix` token, the `mean` of all patches, the patch `at`.
        at: (x, y) in pixels of the original image; None for its centre.
        question: For a VLM.
        token: Of its answer.
        llm_layer: Attention layer of the language model; None for the middle one.
    """

    head: int | None = None
    layer: int | None = None
    source: Source | None = None
    at: tuple[float, float] | None = None
    question: str | None = None
    token: int = 1
    llm_layer: int | None = None


@dataclass(frozen=True)
class Panel:
    """One panel of the picture.

    Attributes:
        title: Says exactly what is shown.
        tiles: One for each view: colours (rows, cols, 3) in [0, 1], or numbers (rows, cols).
        cell: Pixels of the view along the edge of one cell of a tile.
        scale: What the numbers are; None for colours.
        mark: A patch to mark.
        grid: Side of the patches whose borders are drawn over it, in pixels; 0 for none.
        views: Whether the tiles are the views of the image; else the panel has one picture of another kind.
    """

    title: str
    tiles: tuple[Floats, ...]
    cell: int = 1
    scale: str | None = None
    mark: Place | None = None
    grid: int = 0
    views: bool = True


def patch_in_words(place: Place) -> str:
    """For a title."""
    view = f" of view {place.view + 1}" if place.view else ""
    return f"the marked patch (row {place.row + 1}, column {place.col + 1}{view})"
