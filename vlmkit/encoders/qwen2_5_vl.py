"""Qwen2.5-VL's vision tower, as transformers computes it: most blocks attend within windows.

Bai et al. 2025 (https://arxiv.org/abs/2502.13923). Videos are out of scope.

Shapes: T patches of all views, V width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.packed import windows
from vlmkit.encoders.packed_views import Grids
from vlmkit.encoders.qwen_vl import NOT_VISION, SHARED_KEYS, QwenVLTower, pack_attention


class Trunk(Qwen2_5_VisionTransformerPretrainedModel):  # type: ignore[misc]
    """The tower of a Qwen2.5-VL checkpoint; the language model is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = NOT_VISION

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        pack_attention(self.blocks)
        del self.rotary_pos_emb  # the angles are computed here, from theta


class Qwen25VLEncoder(QwenVLTower):
    """Qwen2.5-VL's tower: images in their own proportions, windows of 112 pixels; options as in the base."""

    family: ClassVar[str] = "qwen2_5_vl"
    config_class: ClassVar[Any] = Qwen2_5_VLVisionConfig
    trunk: ClassVar[Any] = Trunk
    fields: ClassVar[tuple[str, ...]] = (*SHARED_KEYS, "window_size", "fullatt_block_indexes")
    pixels: ClassVar[tuple[int, int]] = (56 * 56, 12_845_056)
    colours: ClassVar[tuple[Sequence[float], Sequence[float]]] = (CLIP_MEAN, CLIP_STD)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Options of a tiny random twin."""
        sizes = {"hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 2, "patch_size": 8}
        config = {**sizes, "window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 24}
        return {"vision_config": config, "layout": cls.own_layout(2, 256, 4096)}

    def placed(self, embedded_TV: Tensor, grids: Grids) -> Tensor:
        """See `QwenVLTower.placed`; there are rotary positions only."""
        return embedded_TV

    def cuts(self, grids: Grids) -> tuple[Tensor | None, list[list[int]]]:
        """See `QwenVLTower.cuts`: window after window; a few blocks see the whole image."""
        config = self.vision.config
        # A window is whole groups of patches, as many as fit into `window_size` pixels.
        group = config.spatial_merge_size
        side = config.window_size // group // config.patch_size * group
        orders, within, first = [], [], 0
        for rows, cols in grids:
            order_N, lengths = windows(rows, cols, side)
            orders.append(order_N + first)
            within += lengths
            first += rows * cols
        whole = [rows * cols for rows, cols in grids]
        full = config.fullatt_block_indexes
        return torch.cat(orders), [whole if i in full else within for i in range(self.blocks_run)]
