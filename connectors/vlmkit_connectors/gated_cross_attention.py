"""Flamingo's gated cross-attention: blocks inside the language model look at the latest image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmkit_connectors.base import ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.cross_attention import CrossAttention, Media, Resampler, places
from vlmkit_connectors.flamingo_block import FlamingoBlock


class GatedCrossAttention(CrossAttention):
    """Gated blocks before every `every`-th decoder layer, over latents of a perceiver resampler.

    Flamingo (Alayrac et al. 2022, https://arxiv.org/abs/2204.14198): a text token sees only the image whose
    marker is the last one before it. Published: `every=1` for 3B, 4 for 9B, 7 for 80B; `depth=6`. Blocks have
    OpenFlamingo's parameter names. What differs: the latents are of a view, so an image of several tiles has
    several times 64; there are no time embeddings of video frames.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        text_layers: Number of its decoder layers.
        every: Blocks stand before layers n (from 0) where `every` divides n + 1.
        resampler: `perceiver`, or `none`: blocks look at all patches.
        num_latents: Latents of the resampler, a view; absent, 64. Without a resampler it is refused.
        depth: Layers of the resampler; absent, 6. Without a resampler it is refused.
        heads: Heads, of blocks and resampler.
        head_dim: Width of a head; `heads * head_dim` need not be the width of anything else.
        ff_mult: Feed-forward layers are this many times as wide as their input.
    """

    source = "Flamingo, https://arxiv.org/abs/2204.14198"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        text_layers: int,
        every: int = 1,
        resampler: Resampler = "perceiver",
        num_latents: int | None = None,
        depth: int | None = None,
        heads: int = 8,
        head_dim: int = 64,
        ff_mult: int = 4,
    ) -> None:
        seen, name = sum(vision_widths), "gated_cross_attention"
        super().__init__(text_width, seen)
        check_sizes(name, heads=heads, head_dim=head_dim, ff_mult=ff_mult)
        self.media = Media(name, seen, resampler, num_latents, depth, heads, head_dim, ff_mult)
        for layer in places(name, text_layers, every):
            self.blocks[str(layer)] = FlamingoBlock(text_width, seen, heads, head_dim, ff_mult)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"every": 1, "heads": 2, "head_dim": 8}

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `LayerInjection`; tokens are as wide as the encoders. The question is not looked at."""
        tokens: ImageTokens = self.media(features)
        return tokens
