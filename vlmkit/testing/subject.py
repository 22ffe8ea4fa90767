"""The encoder under check, and what every check does with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, pixel_batch
from vlmkit.testing.twin import gap, make_weights_matter, picture
from vlmkit_connectors import VisionFeatures

Vectors = NDArray[np.float32] | Tensor
ImageReference = Callable[[Sequence[Image.Image]], Vectors]
TextReference = Callable[[Sequence[str]], Vectors]
# What two runs of the same arithmetic in another order may differ by, relative to the largest value.
ROUNDING = 1e-4
SIZE = (101, 67)


@dataclass(frozen=True)
class Subject:
    """An encoder in evaluation mode and float32.

    Attributes:
        encoder: It; checks that change something do so to a copy.
        weights: The reference that its weights come from, if they are published ones.
        reference: Pictures to the retrieval vectors that they should have.
        text_reference: Texts to those that they should have.
        no_reference: Why there is no reference, where there is none.
    """

    encoder: VisionEncoder
    weights: str | None = None
    reference: ImageReference | None = None
    text_reference: TextReference | None = None
    no_reference: str = "no reference was given"

    def copy(self) -> VisionEncoder:
        """The same encoder, to be changed; a text tower that was loaded is not copied."""
        shared = self.encoder._text_tower
        return copy.deepcopy(self.encoder, {id(shared): shared})

    def rebuilt(self, **changes: Any) -> VisionEncoder:
        """Another encoder from the configuration with some arguments changed, with the tensors that fit."""
        arguments = {**self.encoder.config, **changes}
        twin = type(self.encoder)(**arguments).eval().to(self.encoder.device, self.encoder.dtype)
        wanted = twin.state_dict()
        held = self.encoder.state_dict().items()
        kept = {k: v for k, v in held if k in wanted and wanted[k].shape == v.shape}
        twin.load_state_dict(kept, strict=False)
        return twin

    def drawn_anew(self) -> Subject:
        """The same architecture with random weights that mix tokens little."""
        fresh = type(self.encoder)(**self.encoder.config).eval()
        make_weights_matter(fresh, gain=0.5, moved=0.02)
        return replace(self, encoder=fresh.to(self.encoder.device, self.encoder.dtype))

    def batch(self, images: Sequence[Image.Image]) -> PixelBatch:
        """Preprocessed and where the encoder wants it."""
        return self.encoder.move(pixel_batch(self.encoder.spec, images))

    def see(self, images: Sequence[Image.Image]) -> VisionFeatures:
        """Features without a graph."""
        return look(self.encoder, images)


@torch.no_grad()
def look(encoder: VisionEncoder, images: Sequence[Image.Image]) -> VisionFeatures:
    """Features of any encoder without a graph."""
    features: VisionFeatures = encoder(encoder.move(pixel_batch(encoder.spec, images)))
    return features


def photos(number: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Different pictures of one size."""
    return [picture(size, seed) for seed in range(number)]


def features_gap(ours: VisionFeatures, theirs: VisionFeatures) -> float:
    """The larger of the gaps of patches and of vectors; see `gap`."""
    largest = gap(ours.patches_TV, theirs.patches_TV)
    if ours.pooled_BE is None or theirs.pooled_BE is None:
        return largest if ours.pooled_BE is theirs.pooled_BE else float("inf")
    return max(largest, gap(ours.pooled_BE, theirs.pooled_BE))
