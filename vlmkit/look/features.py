"""Numbers about patch features: principal components as colours, cosine similarity. NumPy only.

Shapes: T patches of all views, V width, C colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
COLOURS = 3
# Colours run between these percentiles, so that a few outlier tokens do not turn the others grey.
LOW, HIGH = 1, 99
GREY = 0.5
# A component below this share of the first one is rounding noise, not a direction.
NOISE = 1e-5


@dataclass(frozen=True)
class Components:
    """Patches by their first three principal components.

    Attributes:
        colours_TC: In [0, 1]: red, green and blue are components 1, 2 and 3; grey where there is none.
        shares: Of the variance, for each of the three.
    """

    colours_TC: Floats
    shares: tuple[float, ...]


def principal_colours(patches_TV: Floats) -> Components:
    """Principal components of all patches together, so that one colour means the same in every view.

    A component has no sign of its own; here its largest weight (by size) is positive, so that the same
    features always give the same colours.
    """
    centred_TV = patches_TV.astype(np.float64) - patches_TV.mean(axis=0, dtype=np.float64)
    _, sizes, axes_CV = np.linalg.svd(centred_TV, full_matrices=False)
    strengths = np.zeros(COLOURS)
    found = min(COLOURS, len(sizes))
    strengths[:found] = sizes[:found]
    colours_TC = np.full((len(patches_TV), COLOURS), GREY, np.float32)
    for i in range(found):
        if sizes[i] > NOISE * max(float(sizes[0]), NOISE):
            axis_V = axes_CV[i] * np.sign(axes_CV[i][np.abs(axes_CV[i]).argmax()])
            colours_TC[:, i] = _spread(centred_TV @ axis_V)
    total = float((sizes**2).sum()) or 1.0
    return Components(colours_TC, tuple(float(s**2 / total) for s in strengths))


def _spread(values: NDArray[np.float64]) -> Floats:
    low, high = np.percentile(values, [LOW, HIGH])
    if high <= low:
        # Fewer than one patch in a hundred differs: the whole range then.
        low, high = values.min(), values.max()
    spread: Floats = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    return spread


def cosine_to(vectors_TV: Floats, one_V: Floats) -> Floats:
    """Cosine of each vector with one: (T,), in [-1, 1]; 0 for a vector of zeros."""
    lengths_T = np.linalg.norm(vectors_TV, axis=-1) * np.linalg.norm(one_V)
    cosines_T = (vectors_TV @ one_V) / np.maximum(lengths_T, np.finfo(np.float32).tiny)
    clipped_T: Floats = np.clip(cosines_T, -1, 1).astype(np.float32)
    return clipped_T
