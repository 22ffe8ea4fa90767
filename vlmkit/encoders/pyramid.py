"""Towers in stages, each at half the resolution of the one below: Swin and ConvNeXt.

Shapes: I views, B images, P patches, C H W a picture or a map, V width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vlmkit.encoders.hf import Defaults, HFEncoder


class Pyramid(HFEncoder):
    """A tower in stages. `layer` counts them: 0 is the stem, k the k-th stage, -1 (the default) the last.

    `spec.patch_size` and `spec.width` are those of that stage: stage k stands at `patch_size` times 2^(k-1)
    pixels. Its hidden state is that above its blocks, before the next stage halves the resolution.
    """

    prefix_tokens = 0
    default: ClassVar[Defaults] = Defaults(layer=-1)

    def depth(self, config: Any) -> int:
        """Number of stages."""
        return len(config.depths)

    def stride(self, config: Any, run: int) -> int:
        """Side in pixels of what a token of a stage stands for."""
        return super().stride(config, run) << max(run - 1, 0)

    def vector_width(self, config: Any) -> int:
        """That of the last stage."""
        return self.width(config, self.depth(config))


class ConvPyramid(Pyramid):
    """Stages of convolutions; hidden states are maps (I, V, H, W)."""

    def width(self, config: Any, run: int) -> int:
        """The stem has that of the first stage."""
        return int(config.hidden_sizes[max(run - 1, 0)])

    def tokens(self, hidden: Tensor) -> Tensor:
        """(I, V, H, W) to (I, P, V), row by row."""
        return hidden.flatten(2).transpose(1, 2)
