"""One pass of an encoder over one image, with everything that panels are drawn from.

Shapes: I views, N patches of a view, V width, H W a view's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder, pixel_batch
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import VlmkitError
from vlmkit.look.capture import Attended, attention_of
from vlmkit_connectors import VisionFeatures

Floats = NDArray[np.float32]


class NotPossible(VlmkitError):
    """A panel cannot be drawn for this model; the message says why, and the others are drawn."""


@dataclass(frozen=True)
class Scene:
    """What one encoder made of one image.

    Attributes:
        encoder: In evaluation mode.
        image: The original, RGB.
        pictures_HW3: Each view as the encoder got it, normalisation undone, in [0, 1].
        roles: What each view shows, see `View.role`.
        grids: Rows and columns of patches of each view.
        patches_NV: Features of each view, float32.
        calls: Attention, as the encoder computed it.
    """

    encoder: VisionEncoder
    image: Image.Image
    pictures_HW3: tuple[Floats, ...]
    roles: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    patches_NV: tuple[Floats, ...]
    calls: tuple[Attended, ...]


def observe(encoder: VisionEncoder, image: Image.Image) -> Scene:
    """Run the encoder once over an image and keep what it computed.

    Args:
        encoder: In evaluation mode.
        image: RGB.
    """
    spec = encoder.spec
    features, calls = encode(encoder, image, spec)
    roles = tuple(view.role for view in spec.views(image.size))
    patches = tuple(_floats(view) for view in features.views())
    return Scene(
        encoder, image, pictures_of(spec, image), roles, tuple(features.grids), patches, tuple(calls)
    )


def pictures_of(spec: VisionSpec, image: Image.Image, level: int = 0) -> tuple[Floats, ...]:
    """What the encoder sees, (height, width, 3) in [0, 1] for each view; `level` as in `VisionSpec.at`."""
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    views = spec.preprocess(image, level)
    return tuple(np.clip(view.transpose(1, 2, 0) * std + mean, 0, 1) for view in views)


@torch.no_grad()
def encode(
    encoder: VisionEncoder, image: Image.Image, spec: VisionSpec
) -> tuple[VisionFeatures, list[Attended]]:
    """Features of one image, preprocessed by `spec`, and the attention by which they were computed."""
    batch = encoder.move(pixel_batch(spec, [image]))
    with attention_of(encoder) as calls:
        features: VisionFeatures = encoder(batch)
    return features, calls


def _floats(values: Tensor) -> Floats:
    array: Floats = values.float().cpu().numpy()
    return array
