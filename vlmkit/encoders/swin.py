"""Swin (Liu et al. 2021, https://arxiv.org/abs/2103.14030) and Swin V2 (https://arxiv.org/abs/2111.09883).

Shapes: I views, B images, P patches, C H W a view's pixels, V width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

from torch import Tensor
from transformers import SwinConfig, SwinModel, Swinv2Config, Swinv2Model

from vlmkit.encoders.hf import DROPOUTS, Block, facts
from vlmkit.encoders.pyramid import Pyramid
from vlmkit.errors import UsageError

TINY = {
    "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [1, 2, 2],
    "window_size": 4,
}  # fmt: skip


class SwinEncoder(Pyramid):
    """Swin; the retrieval vector is the mean of the last stage's normalised tokens, as in its classifier.

    `layer` counts stages, see `Pyramid`. Views of another `image_size` keep the windows.
    """

    family = "swin"
    config_class, model_class, model_types = SwinConfig, SwinModel, ("swin",)
    fields: ClassVar[tuple[str, ...]] = (
        "image_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio",
        "qkv_bias", "drop_path_rate", "hidden_act", "use_absolute_embeddings", "layer_norm_eps", *DROPOUTS,
    )  # fmt: skip
    leftover = r"^(classifier|decoder)\.|mask_token$|relative_position_index$|relative_coords_table$"
    layers = "encoder.layers"
    tiny = facts(vision_config=TINY)

    def width(self, config: Any, run: int) -> int:
        """Each stage has double the width of the one below."""
        return int(config.embed_dim * 2 ** max(run - 1, 0))

    def side(self, config: Any, given: int | None, stride: int) -> int:
        """See `HFEncoder.side`; each stage needs a whole window, as transformers cuts no bias."""
        side = grid = super().side(config, given, stride)
        grid //= config.patch_size
        for _ in config.depths[1:]:
            grid = -(-grid // 2)
        if grid < self.smallest_grid(config):
            raise UsageError(
                f"{self.family}: image_size {side} leaves {grid} x {grid} tokens in the last stage, less "
                f"than a window of {config.window_size} x {config.window_size}; give a larger image_size"
            )
        return side

    def smallest_grid(self, config: Any) -> int:
        """Fewest rows of tokens that the last stage can work on."""
        return int(config.window_size)

    def embed(self, pixels_ICHW: Tensor) -> Tensor:
        """Without the grid that transformers gives with it."""
        return super().embed(pixels_ICHW)[0]

    def blocks(self, pixels_ICHW: Tensor) -> Sequence[Block]:
        """One function a stage: the halving, which transformers keeps in the stage below, and the blocks."""
        stages = list(self.part(self.layers))
        grid = tuple(edge // self.vision.config.patch_size for edge in pixels_ICHW.shape[2:])
        grids = list(accumulate(stages[1:], lambda below, _: tuple(-(-n // 2) for n in below), initial=grid))
        halvings = [partial(s.downsample, input_dimensions=g) for s, g in zip(stages[:-1], grids)]
        return [partial(_run, *parts) for parts in zip(stages, grids, [None, *halvings])]

    def pool(self, last: Tensor) -> Tensor:
        """The mean of the normalised tokens."""
        vector_BV: Tensor = self.vision.pooler(self.vision.layernorm(last).transpose(1, 2)).flatten(1)
        return vector_BV

    def drop_unread(self) -> None:
        """The halving above the last stage that runs, too."""
        super().drop_unread()
        for stage in self.part(self.layers)[-1:]:
            stage.downsample = None


class SwinV2Encoder(SwinEncoder):
    """Swin V2: as Swin, with cosine attention and positions that are computed from distances."""

    family = "swinv2"
    config_class, model_class, model_types = Swinv2Config, Swinv2Model, ("swinv2",)
    fields = (*SwinEncoder.fields, "pretrained_window_sizes")

    def smallest_grid(self, config: Any) -> int:
        """Windows shrink to the grid."""
        return 1


def _run(stage: Any, grid: tuple[int, int], halve: Any, hidden_IPV: Tensor) -> Tensor:
    """One stage on `grid` rows and columns of tokens."""
    hidden_IPV = hidden_IPV if halve is None else halve(hidden_IPV)
    for block in stage.blocks:
        hidden_IPV = block(hidden_IPV, grid)[0]
    return hidden_IPV
