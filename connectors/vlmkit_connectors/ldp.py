"""MobileVLM's lightweight downsample projectors, LDP and LDPv2: a quarter of the tokens, few parameters.

Shapes: I views of one grid, R C its rows and columns, V vision width, D width of the language model,
N tokens of a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_one_of
from vlmkit_connectors.conv import SqueezeExcite, depthwise, pointwise
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.views import map_grids, shrink

Variant = Literal["v1", "v2"]


class LDPConnector(Connector):
    """MobileVLM's projectors: an MLP, then convolutions on ceil(rows / 2) by ceil(columns / 2) tokens.

    `v1` (Chu et al. 2023, https://arxiv.org/abs/2312.16886) has two of MobileNetV3's blocks, the second with
    stride 2. `v2` (Chu et al. 2024, https://arxiv.org/abs/2402.03766) averages 2 x 2 patches, then adds a
    depthwise convolution. The originals take 24 x 24 patches to 12 x 12 tokens, and so does this.

    At the right and lower edge of an odd grid `v1` sees zeros, as at every border, and `v2` averages the
    patches that are there. Differs from the original: `v2`'s pools any square grid to 12 x 12.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        variant: Which projector, `v1` or `v2`.
    """

    source = "MobileVLM, https://arxiv.org/abs/2312.16886, and V2, https://arxiv.org/abs/2402.03766"

    def __init__(self, vision_widths: Sequence[int], text_width: int, variant: Variant = "v2") -> None:
        super().__init__()
        check_one_of("ldp", "variant", variant, get_args(Variant))
        self.mlp = mlp_layers([sum(vision_widths), text_width, text_width])
        if variant == "v1":
            self.down = nn.Sequential(InvertedResidual(text_width, 1), InvertedResidual(text_width, 2))
        else:
            self.down = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), PositionalConv(text_width))

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: ceil(rows / 2) by ceil(columns / 2)."""
        return shrink(grid, 2)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        return map_grids(concat_encoders(features), self._project)

    def _project(self, patches_IRCV: Tensor) -> Tensor:
        """(I, R, C, V) to (I, N, D)."""
        tokens_IND: Tensor = self.down(self.mlp(patches_IRCV).movedim(-1, 1)).flatten(2).transpose(1, 2)
        return tokens_IND


class InvertedResidual(nn.Module):
    """MobileNetV3's block as MobileVLM sets it up: layer norms instead of batch norms, no wide middle.

    MobileNetV3 is Howard et al. 2019 (https://arxiv.org/abs/1905.02244). With a stride there is no shortcut.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.spatial = depthwise(width, nn.Hardswish(), stride)
        self.weigh = SqueezeExcite(width, _by_eight(width // 4), nn.ReLU(), nn.Hardsigmoid())
        self.leave = pointwise(width, width)
        self.residual = stride == 1

    def forward(self, picture_IDRC: Tensor) -> Tensor:
        """(I, D, R, C) to (I, D, ceil(R / stride), ceil(C / stride))."""
        inner: Tensor = self.leave(self.weigh(self.spatial(picture_IDRC)))
        return picture_IDRC + inner if self.residual else inner


class PositionalConv(nn.Module):
    """PEG: a depthwise 3 x 3 convolution, added to its input (Chu et al. 2021, https://arxiv.org/abs/2102.10882).

    Places learn where they are from the zeros around the grid.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, picture_IDRC: Tensor) -> Tensor:
        """(I, D, R, C) to the same shape."""
        moved: Tensor = self.conv(picture_IDRC)
        return picture_IDRC + moved


def _by_eight(width: int) -> int:
    """The multiple of 8 nearest to a width, and not below nine tenths of it: MobileNet's rule."""
    nearest = max(8, (width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width else nearest + 8
