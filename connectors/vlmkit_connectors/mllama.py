"""Llama 3.2 Vision: cross-attention layers between those of the language model.

Shapes: D width of the language model and of image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vlmkit_connectors.base import ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_divides, check_sizes
from vlmkit_connectors.cross_attention import CrossAttention, Media, Resampler, places
from vlmkit_connectors.mllama_block import MllamaBlock


class MllamaCrossAttention(CrossAttention):
    """A linear projector, and gated cross-attention layers between the layers of the language model.

    Llama 3.2 Vision (Dubey et al. 2024, section 7, https://arxiv.org/abs/2407.21783) has 40 layers, of which
    3, 8, ..., 38 are such ones: they stand before layers 3, 7, ..., 31 of the 32 others, `every=4, start=3`.
    Published for 11B: `heads=32, kv_heads=8, intermediate=14336`. A text token sees all images of the latest
    run of markers. Layers have the parameter names of transformers.

    What differs: a text token that sees no image gets nothing here and leaves as it came. There, its
    attention goes to all image tokens of the row, those of later images too; only its MLP is masked.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width D of the language model's embeddings.
        text_layers: Number of its decoder layers, those added here not among them.
        every: Every so many-th layer has a block before it.
        start: The first layer with one, from 0; absent: `every - 1`.
        heads: Heads of the blocks; must divide `text_width`.
        kv_heads: Heads of keys and values, each for `heads / kv_heads` heads; absent: as many as `heads`.
        intermediate: Width inside the MLP; absent: 3.5 times `text_width`, as published.
        resampler: `none`, or `perceiver` for Flamingo's (8 heads of 64) before the projector.
        num_latents: Latents of the resampler, a view; absent, 64. Without a resampler it is refused.
        depth: Layers of the resampler; absent, 6. Without a resampler it is refused.
    """

    source = "Llama 3.2 Vision, https://arxiv.org/abs/2407.21783"
    sees_run = True

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        text_layers: int,
        every: int = 4,
        start: int | None = None,
        heads: int = 8,
        kv_heads: int | None = None,
        intermediate: int | None = None,
        resampler: Resampler = "none",
        num_latents: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(text_width, text_width)
        check_sizes("mllama", heads=heads, kv_heads=kv_heads, intermediate=intermediate)
        kv_heads = heads if kv_heads is None else kv_heads
        intermediate = 7 * text_width // 2 if intermediate is None else intermediate
        check_divides("mllama", "heads", "text_width", heads=heads, text_width=text_width)
        check_divides("mllama", "kv_heads", "heads", kv_heads=kv_heads, heads=heads)
        self.media = Media("mllama", sum(vision_widths), resampler, num_latents, depth)
        self.multi_modal_projector = nn.Linear(sum(vision_widths), text_width)
        for layer in places("mllama", text_layers, every, start):
            self.blocks[str(layer)] = MllamaBlock(text_width, heads, kv_heads, intermediate)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"every": 1, "start": 0, "heads": 2, "kv_heads": 1, "intermediate": 32}

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `LayerInjection`; tokens are as wide as the text. The question is not looked at."""
        tokens: ImageTokens = self.media(features)
        return ImageTokens(self.multi_modal_projector(tokens.tokens_ND), tokens.counts)
