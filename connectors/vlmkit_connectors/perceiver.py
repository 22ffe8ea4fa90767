"""The perceiver connector: as many tokens a view as there are learned latents, whatever its grid.

Shapes: I views, N patches of the longest, W width of the resampler, T patches of all views, V vision width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.layers import GatedMLP
from vlmkit_connectors.resampler import PerceiverResampler, Variant


class PerceiverConnector(Connector):
    """Learned latents look at the patches of their view and at each other; they are its tokens.

    `variant="flamingo"` is the resampler of Alayrac et al. 2022 as OpenFlamingo builds it (Awadalla et al.
    2023, https://arxiv.org/abs/2308.01390), published with `depth=6, heads=8, head_dim=64`; it works at the
    vision width. A view is one picture: there are no embeddings of frames or of the place among images.
    OpenFlamingo hands the latents to cross-attention; here a linear layer follows.

    `variant="idefics2"` is that of Laurençon et al. 2024 (https://arxiv.org/abs/2405.02246), published with
    `depth=3, heads=16, head_dim=96, kv_heads=4`: a gated MLP from the patches to the width of the language
    model, where the resampler works, with RMS norms, shared key heads and gated MLPs.

    Latents begin with deviation 0.02 (1 in OpenFlamingo, all ones in Idefics2).

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        variant: `flamingo` or `idefics2`.
        num_latents: Tokens a view.
        depth: Layers of the resampler.
        heads: Attention heads.
        head_dim: Width of a head; absent, `width / heads`.
        width: Width of the resampler; absent, that of the variant.
        kv_heads: Heads of keys and values, each for several heads; absent, as many as heads.
        ff_mult: Feed-forward layers are this many times as wide as the resampler.
        intermediate: Width inside the gated MLP of `idefics2`, published 14336 for a language model of 4096;
            absent, four times `text_width`.

    Raises:
        ValueError: A size is below 1, does not divide as it must, or is not of the variant.
    """

    source = "Flamingo, https://arxiv.org/abs/2204.14198"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        variant: Variant = "flamingo",
        num_latents: int = 64,
        depth: int = 3,
        heads: int = 8,
        head_dim: int | None = None,
        width: int | None = None,
        kv_heads: int | None = None,
        ff_mult: int = 4,
        intermediate: int | None = None,
    ) -> None:
        super().__init__()
        seen = sum(vision_widths)
        gated = variant == "idefics2"
        if width is None:
            width = text_width if gated else seen
        self.num_latents = num_latents
        self.resampler = PerceiverResampler(
            width, num_latents, depth, heads, head_dim, ff_mult, kv_heads, variant
        )
        check_sizes("perceiver", intermediate=intermediate)
        if intermediate is not None and not gated:
            raise ValueError(
                f"perceiver connector: found intermediate={intermediate} with variant={variant!r}, which has "
                "no MLP before the resampler; leave it out, or give variant='idefics2'"
            )
        self.before: nn.Module = nn.Identity() if width == seen else nn.Linear(seen, width)
        if gated:
            self.before = GatedMLP(seen, 4 * text_width if intermediate is None else intermediate, width)
        self.after = nn.Identity() if gated and width == text_width else nn.Linear(width, text_width)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"num_latents": 4, "depth": 1, "heads": 2, "head_dim": 8, "kv_heads": 1}

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`: the number of latents for any grid."""
        return self.num_latents

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        fused = concat_encoders(features)
        media_TW: Tensor = self.before(fused.patches_TV)
        media = VisionFeatures(media_TW, fused.grids_I2, fused.image_of_view_I)
        resampled = self.resampler.of_views(media)
        return ImageTokens(self.after(resampled.tokens_ND), resampled.counts)
