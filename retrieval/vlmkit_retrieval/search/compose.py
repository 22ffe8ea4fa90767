"""One vector between a text's and an image's, in a space that embeds both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search.options import Compose
from vlmkit_retrieval.types import Vectors

Floats = NDArray[np.float64]
# So many items on each side show how far scores spread.
SAMPLE = 20
_NO_SPREAD = 1e-6
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
    one, other = (_unit(np.asarray(v, np.float64)) for v in (image_D, text_D))
    angle = float(np.arctan2(np.linalg.norm(other - one), np.linalg.norm(other + one)) * 2)
    if np.pi - angle < _OPPOSITE:
        raise _nothing_between()
    if how == "mean" or angle < _OPPOSITE:
        between = (1 - part) * one + part * other
    else:
        between = np.sin((1 - part) * angle) * one + np.sin(part * angle) * other
    return _as_query(between)


def balanced(text_D: Vectors, image_D: Vectors, items_ND: Vectors, part: float) -> Vectors:
    """The vector between a text's and an image's for which both decide as much about the order of items.

    Images lie near to each other and far from texts (the modality gap: Liang et al., "Mind the Gap", NeurIPS
    2022), so cosines to an image spread several times as far as those to a text, and the plain mean goes by
    the image alone. Here each vector is divided by the spread of its cosines first. The order of all items is
    that of `part * z(text) + (1 - part) * z(image)`, z being a cosine in units of its standard deviation.

    Args:
        text_D: Of the text.
        image_D: Of the image.
        items_ND: Of the items nearest to either; they need not have unit length.
        part: 0 is the image, 1 the text.
    """
    pair_2D = np.stack([_unit(np.asarray(text_D, np.float64)), _unit(np.asarray(image_D, np.float64))])
    rows_ND = np.asarray(items_ND, np.float64).reshape(-1, pair_2D.shape[1])
    lengths_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    spread_2 = (rows_ND / lengths_N1 @ pair_2D.T).std(axis=0) if len(rows_ND) else np.zeros(2)
    if spread_2.min() < _NO_SPREAD:  # one part cannot tell the items apart, so there is nothing to balance
        spread_2 = np.ones(2)
    weights_2 = np.array([part, 1 - part]) / spread_2
    return _as_query(weights_2 @ pair_2D)


def _unit(vector_D: Floats) -> Floats:
    return vector_D / np.linalg.norm(vector_D)


def _as_query(between_D: Floats) -> Vectors:
    length = np.linalg.norm(between_D)
    if length < _NO_SPREAD:
        raise _nothing_between()
    return np.asarray(between_D / length, np.float32)


def _nothing_between() -> RetrievalUsageError:
    return RetrievalUsageError(
        "the vectors of the text and of the image are opposite, so nothing is between them; "
        "search with compose 'lists'"
    )
