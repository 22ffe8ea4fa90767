"""Where a pixel of the original image lies in the views, for every layout.

A layout is a rule on pixels. Here it is given an image whose colours are coordinates, and what comes out
says which point of the original each pixel of each view shows. So tiles, crops and padding need no code of
their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError

# Blue is 1 inside the image and 0 in what a layout adds; between them lies a blend of the two.
INSIDE = 0.99
# Colours are bytes: a coordinate is known to half a step of this size, as a part of the image's edge.
STEP = 1 / 255


@dataclass(frozen=True)
class Place:
    """One patch: the view's number, row and column, all from 0."""

    view: int
    row: int
    col: int


def place_of(spec: VisionSpec, size: tuple[int, int], at: tuple[float, float] | None) -> Place:
    """The patch that shows a point of the original image.

    Args:
        spec: Of the encoder.
        size: (width, height) of the original in pixels.
        at: (x, y) in its pixels, from the top left; None for its centre.

    Returns:
        In the view that shows it at the largest scale; of several such, the first one.

    Raises:
        UsageError: The point is outside the image, or the layout cuts it off.
    """
    width, height = size
    x, y = at or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(f"the point {x:g},{y:g} is not in the image of {width} x {height} pixels")
    # A pixel is meant by its middle.
    target = np.array([(x + 0.5) / width, (y + 0.5) / height])
    best: tuple[float, Place] | None = None
    for number, maps in enumerate(coordinates(spec, size)):
        found = _nearest(maps, target)
        if found is not None and (best is None or found[0] > best[0] * 1.05):
            scale, row, col = found
            best = scale, Place(number, int(row) // spec.patch_size, int(col) // spec.patch_size)
    if best is None:
        raise UsageError(
            f"the model does not see the point {x:g},{y:g}: layout {spec.layout!r} cuts it off; "
            "choose a point nearer to the centre"
        )
    return best[1]


def coordinates(spec: VisionSpec, size: tuple[int, int], level: int = 0) -> list[NDArray[np.float32]]:
    """For each view: x and y of what a pixel shows (parts of the original's edges), 1 where it is inside.

    Arrays of shape (3, height, width) as `VisionSpec.preprocess` gives them; `level` as there.
    """
    width, height = size
    ramp = np.full((height, width, 3), 255, np.uint8)
    ramp[..., 0] = np.rint((np.arange(width) + 0.5) / width * 255)[None, :]
    ramp[..., 1] = np.rint((np.arange(height) + 0.5) / height * 255)[:, None]
    plain = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resample="bilinear")
    return plain.preprocess(Image.fromarray(ramp), level)


def _nearest(maps: NDArray[np.float32], target: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Scale, row and column in pixels of the place in a view that shows a point; None if it does not."""
    inside = maps[2] > INSIDE
    if not inside.any():
        return None
    far = np.abs(maps[:2] - target[:, None, None]).max(axis=0)
    far[~inside] = np.inf
    # A pixel of a view that is smaller than the original covers more than one step.
    spans = [float(np.ptp(axis[inside])) for axis in maps[:2]]
    pixel = max(span / max(1, edge) for span, edge in zip(spans, maps.shape[:0:-1], strict=True))
    if far.min() > STEP + pixel:
        return None
    rows, cols = np.nonzero(far <= far.min() + STEP / 4)
    scale = inside.sum() / max(spans[0] * spans[1], STEP**2)
    return float(scale), float(rows.mean()), float(cols.mean())
