"""Sizes and pictures on which the rules of layouts are compared with their references."""

import random

import numpy as np
import pytest

from vlmkit.encoders.spec import VisionSpec
from vlmkit.layouts import Alone
from vlmkit.layouts.mosaic import mosaic_box

# Square, a tile, exact canvases, one pixel more and less, edges of one pixel, extreme proportions.
AWKWARD = [
    (48, 48), (24, 24), (24, 48), (48, 24), (72, 24), (25, 47), (49, 24), (1, 1), (1, 90), (2, 300),
    (300, 5), (64, 64), (97, 41), (41, 97), (160, 90),
]  # fmt: skip


@pytest.fixture(scope="session")
def sizes():
    """A thousand (width, height): of all magnitudes, some square, some whole multiples of usual tiles."""
    draw = random.Random(0)
    found = [(round(2 ** draw.uniform(0, 12.5)), round(2 ** draw.uniform(0, 12.5))) for _ in range(500)]
    found += [(draw.randint(100, 3000), draw.randint(100, 3000)) for _ in range(300)]
    edges = [draw.randint(1, 2000) for _ in range(50)]
    found += [(edge, edge) for edge in edges]
    tiles = [336, 364, 384, 448, 512]
    found += [(t * draw.randint(1, 6), t * draw.randint(1, 6)) for t in tiles for _ in range(30)]
    # Where a float falls just below the whole number of columns that it stands for.
    return [*found, (176, 110), (176, 198), (328, 205), (704, 396), (752, 423)]


@pytest.fixture(scope="session", params=AWKWARD, ids=lambda size: f"{size[0]}x{size[1]}")
def awkward(request, noise):
    """A picture of an awkward size for tiles of 24 pixels."""
    return noise(sum(request.param), request.param)


@pytest.fixture(scope="session")
def spec():
    """A function: a stated layout and a side to a spec of patches of 8 pixels."""

    def make(layout, side=24, **changes):
        stated = {"mean": (0.48, 0.45, 0.4), "std": (0.26, 0.27, 0.28), "resample": "bicubic", **changes}
        return VisionSpec(side, 8, 4, layout=layout, **stated)

    return make


@pytest.fixture(scope="session")
def tokens():
    """A function: layout, image size, frame and a tile's grid of tokens to the tokens of the sequence."""

    def count(layout, size, frame, tile):
        pieces = layout.pieces(size, frame)
        alone = [p for p in pieces if isinstance(p, Alone)]
        mosaics = [mosaic_box(p, tile).tokens for p in pieces if not isinstance(p, Alone)]
        return len(alone) * tile[0] * tile[1] + sum(p.newline for p in alone) + sum(mosaics)

    return count


@pytest.fixture(scope="session")
def in_sequence():
    """A function: a spec and a picture to its views' pixels in the order of the sequence, stacked."""

    def order(spec, picture, level=0):
        pixels = spec.preprocess(picture, level)
        found = []
        for piece in spec.pieces(picture.size, level):
            first = piece.view if isinstance(piece, Alone) else piece.first
            number = 1 if isinstance(piece, Alone) else piece.rows * piece.cols
            found += pixels[first : first + number]
        return np.stack(found)

    return order
