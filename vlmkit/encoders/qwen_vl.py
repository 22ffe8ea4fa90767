"""What the vision towers of Qwen2.5-VL and Qwen3-VL have in common.

An image is a video of one step: its frame twice. transformers keeps patches in groups of 2 x 2, which a
merger makes one token of; here they are row-major, and grouped for the merger only.

Shapes: T patches of all views, N patches of a view, V width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmkit.encoders.batch import PixelBatch
from vlmkit.encoders.packed import inverse
from vlmkit.encoders.packed_layers import FusedAttention
from vlmkit.encoders.packed_tower import PackedTower
from vlmkit.encoders.packed_views import Grids, axial_rope, convolve, patch_grids
from vlmkit.encoders.spec import Resample, Stated, hidden_state_index
from vlmkit.errors import UsageError
from vlmkit.layouts import build_layout
from vlmkit.layouts.qwen import Qwen
from vlmkit_connectors import VisionFeatures

NOT_VISION = [r"^(model\.)?language_model\.", r"^model\.(layers|embed_tokens|norm)\.", r"^lm_head\."]
# What of a configuration makes the module of either tower.
SHARED_KEYS = (
    "hidden_size", "intermediate_size", "depth", "num_heads", "patch_size", "hidden_act",
    "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "rope_parameters",
)  # fmt: skip


def pack_attention(blocks: Sequence[Any]) -> None:
    """Put packed attention into the blocks of a tower."""
    for block in blocks:
        block.attn = FusedAttention(block.attn)


class QwenVLTower(PackedTower):
    """A Qwen-VL tower; a family states class attributes, the positions it adds, and its windows.

    Args:
        vision_config: Fields of the family's configuration in `fields`; absent ones have its defaults.
        image_size: Side of a view in pixels, for layouts of square views. Absent: that of the largest square
            image of layout `qwen`.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised.
        merged: Features are the output of the tower's own merger, one for a group of 2 x 2 patches, which is
            trained for the language model of the checkpoint; else the patches themselves.
        layout: The image layout. Absent: `qwen` with the numbers of the family.
        mean, std: Normalisation of pixels in [0, 1]. Absent: the family's.
        resample: Interpolation.
        pooled: Only false.
        weights: Hub id such as those in `known.py` or folder; in place of `vision_config`.
    """

    renamed: ClassVar[Mapping[str, str]] = {r"^(model\.)?visual\.": ""}
    blocks_name: ClassVar[str] = "blocks"
    depth_field: ClassVar[str] = "depth"
    pixels: ClassVar[tuple[int, int]]
    colours: ClassVar[tuple[Sequence[float], Sequence[float]]]

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        layer: int = -1,
        merged: bool = False,
        layout: Stated | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resample: Resample = "bicubic",
        pooled: bool = False,
        weights: str | None = None,
    ) -> None:
        group = (vision_config or {}).get("spatial_merge_size", 2)
        layout = self.own_layout(1 if merged else group, *self.pixels) if layout is None else layout
        mean, std = (own if x is None else x for x, own in zip((mean, std), self.colours, strict=True))
        views = {"image_size": image_size, "layout": layout, "mean": mean, "std": std, "resample": resample}
        given = {"vision_config": vision_config, "layer": layer, "merged": merged, **views}
        super().__init__({**given, "pooled": pooled}, weights)
        if not merged:
            del self.vision.merger

    @staticmethod
    def own_layout(merge: int, least: int, most: int) -> dict[str, Any]:
        """Layout `qwen` as a recipe states it."""
        return {"type": "qwen", "merge": merge, "min_pixels": least, "max_pixels": most}

    @classmethod
    def side(cls, config: Any, given: Mapping[str, Any]) -> int:
        """See `PackedTower.side`."""
        if given["image_size"] is not None:
            return int(given["image_size"])
        rule = build_layout(given["layout"])
        if not isinstance(rule, Qwen):
            raise UsageError(f"{cls.family}: layout {given['layout']!r} needs an image_size, e.g. 448")
        group = config.patch_size * config.spatial_merge_size
        return int(max(1, math.isqrt(rule.max_pixels) // group) * group)

    @classmethod
    def check(cls, config: Any, given: Mapping[str, Any]) -> None:
        """See `PackedTower.check`."""
        super().check(config, given)
        top = hidden_state_index(cls.family, given["layer"], config.depth) == config.depth
        if given["merged"] and not top:
            raise UsageError(
                f"{cls.family}: found merged: true with layer {given['layer']}; the merger reads the last "
                "layer, -1. State that, or leave out merged"
            )

    @classmethod
    def layout_of(cls, config: Any, tower: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
        """See `PackedTower.layout_of`."""
        size = stored.get("size") or {}
        least = stored.get("min_pixels") or size.get("shortest_edge", cls.pixels[0])
        most = stored.get("max_pixels") or size.get("longest_edge", cls.pixels[1])
        for name, own in (("patch_size", tower.patch_size), ("merge_size", tower.spatial_merge_size)):
            if stored.get(name, own) != own:
                raise UsageError(f"the image processor has {name}={stored[name]}, the encoder {own}")
        return {"layout": cls.own_layout(tower.spatial_merge_size, least, most)}

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        resolved = super().resolve(**options)
        if resolved.get("merged") and "layout" in resolved and "layout" not in options:
            # A patch of the layout is then what one merged token stands for.
            resolved["layout"] = {**resolved["layout"], "merge": 1}
        return resolved

    def token(self, config: Any) -> tuple[int, int]:
        """See `PackedTower.token`."""
        if self.config["merged"]:
            return config.patch_size * config.spatial_merge_size, config.out_hidden_size
        return config.patch_size, config.hidden_size

    def blocks(self) -> list[Any]:
        """See `PackedTower.blocks`."""
        return list(self.vision.blocks)

    @abstractmethod
    def placed(self, embedded_TV: Tensor, grids: Grids) -> Tensor:
        """With the learned positions added, if there are any."""

    @abstractmethod
    def cuts(self, grids: Grids) -> tuple[Tensor | None, list[list[int]]]:
        """The order in which patches go through the blocks (None for row-major), and the lengths for each."""

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`; no attention sees another view, and nothing is padded."""
        grids = patch_grids(batch, self.patch)
        stem, frames = self.vision.patch_embed.proj, self.vision.config.temporal_patch_size
        hidden_TV = self.placed(convolve(batch, stem, frames), grids)
        frequencies = self.frequencies(self.head_width // 2)
        rope = axial_rope(grids, frequencies, frequencies)
        order_T, lengths = self.cuts(grids)
        if order_T is not None:
            order_T = order_T.to(hidden_TV.device)
            hidden_TV, rope = hidden_TV[order_T], (rope[0][order_T], rope[1][order_T])
        calls = [{"cu_seqlens": None, "position_embeddings": rope, "lengths": own} for own in lengths]
        hidden_TV = self.run(hidden_TV, calls)
        hidden_TV = hidden_TV if order_T is None else hidden_TV[inverse(order_T)]
        if self.config["merged"]:
            groups_T = group_order(grids, self.vision.config.spatial_merge_size)
            hidden_TV = self.vision.merger(hidden_TV[groups_T.to(hidden_TV.device)])
        return VisionFeatures(hidden_TV, batch.grids_I2, batch.image_of_view_I)


def group_order(grids: Grids, side: int) -> Tensor:
    """The index of each patch when groups of `side` x `side` follow one another; grids are whole groups."""
    orders, first = [], 0
    for rows, cols in grids:
        index_N = torch.arange(first, first + rows * cols)
        orders.append(index_N.view(rows // side, side, cols // side, side).transpose(1, 2).flatten())
        first += rows * cols
    return torch.cat(orders)
