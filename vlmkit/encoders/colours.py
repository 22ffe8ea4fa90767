"""Means and deviations of the colours red, green and blue that checkpoints are normalised by. No torch."""

from __future__ import annotations

RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
HALF: RGB = (0.5, 0.5, 0.5)
# As options of an encoder, written as JSON has them.
IMAGENET = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
