"""One vector between a text's and an image's, in a space that embeds both."""

from __future__ import annotations

import numpy as np

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search.options import Compose
from vlmkit_retrieval.types import Vectors

# Closer to opposite than this, there is no one way between two vectors.
_OPPOSITE = 1e-3


def composed(text_D: Vectors, image_D: Vectors, how: Compose, part: float) -> Vectors:
    """The vector of unit length that lies between two, `part` of the way from the image to the text.

    Args:
        text_D: Of the text.
        image_D: Of the image.
        how: `mean` goes along the straight line, `slerp` along the arc with even speed (Shoemake, "Animating
            Rotation with Quaternion Curves", 1985): where texts and images lie far apart, as in CLIP's space,
            the straight line gives other places but for the middle, where both are the same.
        part: 0 is the image, 1 the text.

    Raises:
        RetrievalUsageError: They are opposite, and nothing is between them.
    """
    one, other = (np.asarray(v, np.float64) / np.linalg.norm(v) for v in (image_D, text_D))
    angle = float(np.arctan2(np.linalg.norm(other - one), np.linalg.norm(other + one)) * 2)
    if np.pi - angle < _OPPOSITE:
        raise RetrievalUsageError(
            "the vectors of the text and of the image are opposite, so nothing is between them; "
            "search with compose 'lists'"
        )
    if how == "mean" or angle < _OPPOSITE:
        between = (1 - part) * one + part * other
    else:
        between = np.sin((1 - part) * angle) * one + np.sin(part * angle) * other
    return np.asarray(between / np.linalg.norm(between), np.float32)
