"""Preprocessing of a checkpoint, found among the layouts and proved on pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from vlmkit.encoders.hub import load_pretrained, read_processor
from vlmkit.encoders.processors import stated_pixels
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError

# Wide, high, small and square: where crops, paddings and roundings differ.
SIZES = ((301, 200), (97, 260), (33, 40), (64, 64))
# Shares of a picture that published processors cut out.
SHARES = (1.0, 224 / 256, 0.875, 0.9, 0.95)
TOLERANCE = 1e-5


def proved_pixels(weights: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`layout`, `image_size`, `shortest_edge`, `mean`, `std`, `resample` of a checkpoint's image processor.

    Where the layout and the side are given, the processor's numbers are taken and nothing is left to prove.

    Raises:
        UsageError: There is no processor, or no layout gives its pixels.
        VlmkitError: It cannot be read.
    """
    # Older transformers hide it without torchvision, though its classes for Pillow need none.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    stored = read_processor(weights)
    needed = ("layout", "image_size", "mean", "std", "resample")
    if not stored and not set(needed) <= set(given):
        raise UsageError(f"weights {weights!r} have no image processor; state {', '.join(needed)}")
    if not stored or {"layout", "image_size"} <= set(given):
        return stated_pixels(stored)
    processor = load_pretrained(AutoImageProcessor, weights, backend="pil")
    names = ("image_mean", "image_std", "resample")
    numbers = stated_pixels({**stored, **{name: getattr(processor, name) for name in names}})
    pictures = _pictures()
    theirs = [processor([picture], return_tensors="np")["pixel_values"][0] for picture in pictures]
    for views in _candidates(theirs[0].shape):
        spec = VisionSpec(patch_size=1, width=1, **{**numbers, **views})
        ours = [spec.preprocess(picture)[0] for picture in pictures]
        if all(a.shape == b.shape and np.abs(a - b).max() < TOLERANCE for a, b in zip(ours, theirs)):
            return {**numbers, **views}
    raise UsageError(
        f"the image processor of {weights!r} ({type(processor).__name__}, size={stored.get('size')}) gives "
        "pixels that no layout gives; state layout (crop, pad or square) and image_size"
    )


def _candidates(shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Layouts that give pictures of a shape, if it is a square."""
    if len(shape) != 3 or shape[1] != shape[2]:
        return
    side = shape[1]
    yield {"layout": "square", "image_size": side}
    yield {"layout": "pad", "image_size": side}
    for edge in sorted({edge for share in SHARES for edge in (int(side / share), round(side / share))}):
        yield {"layout": "crop", "image_size": side, "shortest_edge": edge}


def _pictures() -> list[Image.Image]:
    """Noise over a gradient, nowhere flat and nowhere symmetric."""
    pictures = []
    for seed, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
        ramp = np.linspace(0, 127, width * height).reshape(height, width, 1)
        pictures.append(Image.fromarray((noise + ramp).astype(np.uint8)))
    return pictures
