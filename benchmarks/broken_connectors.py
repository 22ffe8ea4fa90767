"""Connectors with a mistake that training does not complain about, for `probe.py`.

Shapes: I views, N image tokens, D width of the language model.
"""

import torch
from torch import nn

from vlmkit_connectors import ImageTokens
from vlmkit_connectors.mlp import MLPConnector


class ConstantConnector(MLPConnector):
    """Learned tokens that never see the image: it was cut off before the first layer."""

    def __init__(self, vision_widths, text_width, depth=2, pool=1, expansion=None):
        super().__init__(vision_widths, text_width, depth, pool, expansion)
        self.seen_V = nn.Parameter(torch.zeros(sum(vision_widths)))

    @torch.no_grad()
    def reset_parameters(self):
        """See `Connector.reset_parameters`."""
        self.seen_V.normal_()

    def forward(self, features, text=None):
        """See `Connector.forward`."""
        counts = tuple(self.num_tokens(grid) for grid in features[0].grids)
        tokens_D = self.layers(self.seen_V)
        # The encoder is touched, at no weight: in a run of several processes others would wait for it.
        nothing = 0.0 * features[0].patches_TV.sum()
        return ImageTokens(tokens_D.expand(sum(counts), -1) + nothing, counts)


class WrongRowConnector(MLPConnector):
    """Each image gets the tokens of the image before it in the batch."""

    def forward(self, features, text=None):
        """See `Connector.forward`."""
        given = super().forward(features, text)
        views = torch.split(given.tokens_ND, given.counts)
        assert len({len(view_ND) for view_ND in views}) == 1, "views of one size only"
        return ImageTokens(torch.cat([views[-1], *views[:-1]]), given.counts)


class NoiseConnector(MLPConnector):
    """Tokens are noise of the right scale: a bug upstream has overwritten what was computed."""

    def forward(self, features, text=None):
        """See `Connector.forward`."""
        given = super().forward(features, text)
        noise_ND = torch.randn_like(given.tokens_ND) * given.tokens_ND.detach().std()
        return ImageTokens(noise_ND + 0.0 * given.tokens_ND, given.counts)
