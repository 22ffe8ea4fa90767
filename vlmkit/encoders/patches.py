"""An encoder's patch tokens as vectors of an index, compared by MaxSim: for images that share details.

Khattab and Zaharia, "ColBERT", 2020 (https://arxiv.org/abs/2004.12832) compare texts so, token by token;
Faysse et al., "ColPali", 2024 (https://arxiv.org/abs/2407.01449) pages. Our towers were not trained for it:
measure on your own data whether it helps.

Shapes: N patches of an image, V width, R rows and C columns of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vlmkit.encoders.base import VisionEncoder, evaluating
from vlmkit.encoders.batch import pixel_batch
from vlmkit.encoders.text import text_hash
from vlmkit.errors import UsageError, VlmkitError
from vlmkit_connectors import Grid
from vlmkit_retrieval.engines.vectors import MULTI_LIMIT


class PatchEncoder:
    """A vision encoder that gives an index its patches; its `PatchEmbedder` by shape.

    Args:
        encoder: The tower. Of an image, the view that shows all of it is taken.
        window: The mean of so many by so many patches is one vector. Where an image still has more numbers
            than engines take for one item (1,048,576), a larger window is taken for it.

    Raises:
        UsageError: A window below 1.
    """

    def __init__(self, encoder: VisionEncoder, window: int = 1) -> None:
        if window < 1:
            raise UsageError(f"window is {window}; it is 1 or more")
        self._encoder, self._window = encoder, window

    @property
    def name(self) -> str:
        """Name of the vectors in an index."""
        return f"{self._encoder.name}-patches"

    @property
    def embed_dim(self) -> int:
        """Width of the patch tokens."""
        return self._encoder.spec.feature_width

    @property
    def fingerprint(self) -> str:
        """The encoder's, and how its patches are made vectors."""
        return text_hash(f"{self._encoder.fingerprint} patches window {self._window} v1")

    @torch.no_grad()
    def embed_patches(self, images: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """Unit-length vectors (N, V) of each image.

        Raises:
            VlmkitError: The tower reads several scales of a view, which have grids of their own.
        """
        if not images:
            return []
        encoder = self._encoder
        with evaluating(encoder):
            seen = encoder(encoder.move(pixel_batch(encoder.spec, images, whole_only=True)))
        if len(seen.grids) != len(images):
            raise VlmkitError(f"encoder {encoder.name!r} has several grids an image; patches need one")
        return [self._vectors(own_NV, grid) for own_NV, grid in zip(seen.views(), seen.grids, strict=True)]

    def _vectors(self, own_NV: Tensor, grid: Grid) -> NDArray[np.float32]:
        own_VRC = own_NV.float().T.reshape(-1, *grid)
        window = self._window
        while math.ceil(grid[0] / window) * math.ceil(grid[1] / window) * len(own_VRC) > MULTI_LIMIT:
            window += 1
        # At the edges a mean is of the patches that are there.
        mean_VRC = nn.functional.avg_pool2d(own_VRC, window, ceil_mode=True, count_include_pad=False)
        vectors_NV: NDArray[np.float32] = nn.functional.normalize(mean_VRC.flatten(1).T, dim=-1).cpu().numpy()
        return vectors_NV
