"""Random changes of training images: a function of the seed, the epoch and the sample alone.

Shapes: C channels (RGB), L levels of a byte.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

LEVELS = np.arange(256)


@dataclass(frozen=True)
class Augmenter:
    """Moves, zooms, turns and recolours pictures; what comes in at the edges is of one colour.

    Attributes:
        shift: Largest move, as a share of width and height.
        zoom: Largest factor of the size, less 1; as often it is made smaller by as much.
        turn: Largest turn in degrees, either way.
        colour: Each channel's distance to `fill` is scaled by a factor of its own within 1 - colour and
            1 + colour.
        fill: Colour that comes in at the edges, as Pillow's `ImageColor` reads it (RGB).
        seed: Of the draws.
    """

    shift: float = 0.0
    zoom: float = 0.0
    turn: float = 0.0
    colour: float = 0.0
    fill: str = "gray"
    seed: int = 0

    def __call__(self, images: list[Image.Image], sample_id: str, epoch: int) -> list[Image.Image]:
        """The images (RGB, any size) of a sample in an epoch, all changed alike; their sizes stay."""
        draw = random.Random(f"{self.seed}/{epoch}/{sample_id}")
        moved = draw.uniform(-self.shift, self.shift), draw.uniform(-self.shift, self.shift)
        factor = (1 + self.zoom) ** draw.uniform(-1, 1)
        angle = math.radians(draw.uniform(-self.turn, self.turn))
        gains = [1 + draw.uniform(-self.colour, self.colour) for _ in range(3)]
        fill = ImageColor.getrgb(self.fill)[:3]
        if self.shift or self.zoom or self.turn:
            images = [_placed(image, moved, factor, angle, fill) for image in images]
        if self.colour:
            table = _levels(gains, fill)
            images = [image.point(table) for image in images]
        return images


def _placed(
    image: Image.Image, moved: tuple[float, float], factor: float, angle: float, fill: tuple[int, ...]
) -> Image.Image:
    """The picture zoomed and turned about its centre, then moved by shares of its size."""
    width, height = image.size
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    middle_x, middle_y = width / 2, height / 2
    # Pillow asks where a pixel comes from: the way back.
    x, y = middle_x + moved[0] * width, middle_y + moved[1] * height
    back = (cos, sin, middle_x - cos * x - sin * y, -sin, cos, middle_y + sin * x - cos * y)
    return image.transform(
        image.size, Image.Transform.AFFINE, back, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )


def _levels(gains: list[float], fill: tuple[int, ...]) -> list[int]:
    """What each of the 256 levels becomes, channel after channel."""
    base_C1, gain_C1 = np.array(fill)[:, None], np.array(gains)[:, None]
    levels_CL = np.rint(base_C1 + (LEVELS - base_C1) * gain_C1).clip(0, 255)
    return [int(level) for level in levels_CL.flat]
