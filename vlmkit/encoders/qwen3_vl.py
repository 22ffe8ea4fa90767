"""Qwen3-VL's vision tower, as transformers computes it: learned positions at any size, and rotary ones.

Qwen team 2025 (https://arxiv.org/abs/2511.21631). Its DeepStack features (merged tokens of three blocks below
the last, which Qwen3-VL adds inside its language model) are out of scope, and so are videos.

Shapes: T patches of all views, S side of the position table, V width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from vlmkit.encoders.hf import HALF
from vlmkit.encoders.packed_views import Grids, resized_positions
from vlmkit.encoders.qwen_vl import NOT_VISION, SHARED_KEYS, QwenVLTower, pack_attention
from vlmkit.errors import UsageError


class Trunk(Qwen3VLVisionModel):  # type: ignore[misc]
    """The tower of a Qwen3-VL checkpoint; the language model and DeepStack's mergers are not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [*NOT_VISION, r"deepstack_merger_list\."]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        pack_attention(self.blocks)
        del self.rotary_pos_emb  # the angles are computed here, from theta
        del self.deepstack_merger_list


class Qwen3VLEncoder(QwenVLTower):
    """Qwen3-VL's tower: images in their own proportions, every block sees the whole image; see the base."""

    family: ClassVar[str] = "qwen3_vl"
    config_class: ClassVar[Any] = Qwen3VLVisionConfig
    trunk: ClassVar[Any] = Trunk
    fields: ClassVar[tuple[str, ...]] = (*SHARED_KEYS, "num_position_embeddings")
    pixels: ClassVar[tuple[int, int]] = (65_536, 16_777_216)
    colours: ClassVar[tuple[Sequence[float], Sequence[float]]] = (HALF, HALF)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Options of a tiny random twin."""
        sizes = {"hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 2, "patch_size": 8}
        config = {**sizes, "num_position_embeddings": 16, "out_hidden_size": 24}
        return {"vision_config": config, "layout": cls.own_layout(2, 256, 4096)}

    @classmethod
    def check(cls, config: Any, given: Mapping[str, Any]) -> None:
        """See `PackedTower.check`."""
        super().check(config, given)
        if math.isqrt(config.num_position_embeddings) ** 2 != config.num_position_embeddings:
            raise UsageError(
                f"qwen3_vl: num_position_embeddings {config.num_position_embeddings} is no square; positions "
                "form one"
            )

    def placed(self, embedded_TV: Tensor, grids: Grids) -> Tensor:
        """See `QwenVLTower.placed`: the table's corners lie on those of the image."""
        table_NV = self.vision.pos_embed.weight
        side = math.isqrt(len(table_NV))
        table_SSV = table_NV.view(side, side, -1)
        return embedded_TV + resized_positions(table_SSV, grids, align_corners=True)

    def cuts(self, grids: Grids) -> tuple[Tensor | None, list[list[int]]]:
        """See `QwenVLTower.cuts`."""
        return None, [[rows * cols for rows, cols in grids]] * self.blocks_run
