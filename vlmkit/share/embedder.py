"""One forward for training and for an index: vectors of stored features, features of what is indexed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, pixel_batch
from vlmkit.share import keys
from vlmkit.share.features import FeatureFile
from vlmkit.share.lock import Tell

GIGABYTE = 1e9


class SharedEmbedder:
    """A frozen encoder as an index's `Embedder` that looks first into what `vlmkit train --share` left.

    What it finds there was computed of the very same pixels, alone, in float32 on such a machine: its vectors
    are those of the encoder itself, bit for bit. What it does not find it computes and leaves there. An image
    of several views is not shared: training encodes all of them, an index the one that shows all of it.

    Args:
        encoder: In evaluation mode.
        share: The directory; made where absent.
        limit: Most gigabytes of the encoder's features.
        tell: Told when the limit is reached.
    """

    def __init__(self, encoder: VisionEncoder, share: Path, limit: float, tell: Tell) -> None:
        facts = {"machine": keys.machine(encoder.device, "no"), "encoder": keys.encoder_facts(encoder)}
        (share / "features").mkdir(parents=True, exist_ok=True)
        file = share / "features" / f"{keys.digest(facts)}.sqlite"
        self._file = FeatureFile(file, limit * GIGABYTE, tell)
        self._encoder = encoder

    @property
    def name(self) -> str:
        """The encoder's."""
        return self._encoder.name

    @property
    def fingerprint(self) -> str:
        """The encoder's: its vectors are the same."""
        return self._encoder.fingerprint

    @property
    def embed_dim(self) -> int:
        """The encoder's."""
        return self._encoder.embed_dim

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """See `VisionEncoder.embed_images`; each image on its own."""
        rows = [self._embed(image) for image in images]
        return np.concatenate(rows) if rows else np.zeros((0, self.embed_dim), np.float32)

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `VisionEncoder.embed_text`."""
        return self._encoder.embed_text(texts)

    @torch.no_grad()
    def _embed(self, image: Image.Image) -> NDArray[np.float32]:
        encoder = self._encoder
        whole: PixelBatch = pixel_batch(encoder.spec, [image], whole_only=True)
        if len(encoder.spec.views(image.size)) > 1:
            return encoder.embed_batch(whole)
        pooled_1E = self._file.features(encoder, [whole])[0].pooled_BE
        if pooled_1E is None:
            return encoder.embed_batch(whole)  # says that the encoder has no retrieval space
        vector: NDArray[np.float32] = nn.functional.normalize(pooled_1E.float(), dim=-1).cpu().numpy()
        return vector
