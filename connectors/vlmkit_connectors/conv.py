"""What convolutional connectors are made of. Each picture is one view; zeros lie around its own border.

Nothing here looks at other views: norms are over the channels of one place, never over a batch, which may be
tiny and whose statistics a frozen connector would keep.

Shapes: I views of one grid, R C its rows and columns, V channels.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each place, with learned weight and bias."""

    def forward(self, picture_IVRC: Tensor) -> Tensor:
        """(I, V, R, C) to the same shape."""
        return super().forward(picture_IVRC.movedim(1, -1)).movedim(-1, 1)


def pointwise(seen: int, width: int, act: nn.Module | None = None) -> nn.Sequential:
    """A linear layer at each place, without bias, then norm and activation."""
    return _conv_norm(nn.Conv2d(seen, width, 1, bias=False), act)


def depthwise(width: int, act: nn.Module, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution of each channel, without bias, then norm and activation.

    The grid becomes ceil(rows / stride) by ceil(columns / stride).
    """
    conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
    return _conv_norm(conv, act)


def _conv_norm(conv: nn.Conv2d, act: nn.Module | None) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=LayerNorm2d(conv.out_channels))
    if act is not None:
        layers["act"] = act
    return nn.Sequential(layers)


class SqueezeExcite(nn.Module):
    """Weighs the channels of a view by what its average says (Hu et al. 2017, https://arxiv.org/abs/1709.01507).

    Args:
        width: Channels.
        hidden: Channels of the layer between.
        act: Activation of that layer.
        gate: From its output to weights.
    """

    def __init__(self, width: int, hidden: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, hidden, 1)
        self.act = act
        self.excite = nn.Conv2d(hidden, width, 1)
        self.gate = gate

    def forward(self, picture_IVRC: Tensor) -> Tensor:
        """(I, V, R, C) to the same shape."""
        mean_IV11 = picture_IVRC.mean((2, 3), keepdim=True)
        weights_IV11: Tensor = self.gate(self.excite(self.act(self.squeeze(mean_IV11))))
        return picture_IVRC * weights_IV11
