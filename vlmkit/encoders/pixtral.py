"""Pixtral's vision tower, as transformers computes it: any size and proportions, 2-D rotary positions.

Agrawal et al. 2024 (https://arxiv.org/abs/2410.07073). Mistral 3's towers are of this kind too.

Shapes: T patches of all views, V width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from transformers import PixtralVisionConfig, PixtralVisionModel

from vlmkit.encoders.batch import PixelBatch
from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.packed_layers import SplitAttention
from vlmkit.encoders.packed_tower import PackedTower
from vlmkit.encoders.packed_views import axial_rope, convolve, patch_grids
from vlmkit.encoders.spec import Resample, Stated
from vlmkit.errors import UsageError
from vlmkit_connectors import VisionFeatures

# What of a `PixtralVisionConfig` makes the module; the rest of a config.json is bookkeeping.
VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "hidden_act", "attention_dropout", "rope_parameters",
)  # fmt: skip


class Trunk(PixtralVisionModel):  # type: ignore[misc]
    """The tower of a Pixtral or Mistral 3 checkpoint; the language model is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^(model\.)?(language_model|multi_modal_projector)\.", r"^lm_head\.",
    ]  # fmt: skip

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.transformer.layers:
            layer.attention = SplitAttention(layer.attention, "o_proj", config.attention_dropout)
        del self.patch_positional_embedding  # the angles are computed here, from theta


class PixtralEncoder(PackedTower):
    """Pixtral's tower: patches of images in their own size and proportions; no retrieval vector.

    With `weights`, `from_options` takes from the checkpoint what is not given: `vision_config`, `layout`,
    `mean`, `std`, `resample`.

    Args:
        vision_config: Fields of `PixtralVisionConfig` in `VISION_KEYS`; absent ones have its defaults.
        image_size: Longest edge of layout `longest`, and side of a view for layouts of square views, in
            pixels. Absent: the configuration's.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); the last one was trained to.
        layout: The image layout; `longest` is Pixtral's own.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        pooled: Only false.
        weights: Hub id such as those in `known.py` or folder; in place of `vision_config`.
    """

    family: ClassVar[str] = "pixtral"
    config_class: ClassVar[Any] = PixtralVisionConfig
    trunk: ClassVar[Any] = Trunk
    fields: ClassVar[tuple[str, ...]] = VISION_KEYS
    renamed: ClassVar[Mapping[str, str]] = {r"^(model\.)?vision_tower\.": ""}
    blocks_name: ClassVar[str] = "layers"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        layer: int = -1,
        layout: Stated = "longest",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resample: Resample = "bicubic",
        pooled: bool = False,
        weights: str | None = None,
    ) -> None:
        views = {"image_size": image_size, "layout": layout, "mean": mean, "std": std, "resample": resample}
        super().__init__({"vision_config": vision_config, "layer": layer, **views, "pooled": pooled}, weights)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Options of a tiny random twin."""
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        return {"vision_config": {**sizes, "image_size": 32, "patch_size": 8, "hidden_act": "silu"}}

    @classmethod
    def side(cls, config: Any, given: Mapping[str, Any]) -> int:
        """See `PackedTower.side`."""
        return int(config.image_size if given["image_size"] is None else given["image_size"])

    @classmethod
    def layout_of(cls, config: Any, tower: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
        """See `PackedTower.layout_of`; Mistral 3 rounds up to whole groups of patches."""
        patch, edge = stored.get("patch_size", tower.patch_size), stored.get("size", {}).get("longest_edge")
        if (
            patch not in (tower.patch_size, {"height": tower.patch_size, "width": tower.patch_size})
            or not edge
        ):
            raise UsageError(
                f"the image processor (size={stored.get('size')}, patch_size={patch}) does not fit patches "
                f"of {tower.patch_size} pixels; state a layout, e.g. {{type: longest, longest_edge: 1024}}"
            )
        merge = getattr(config, "spatial_merge_size", 1)
        return {"layout": {"type": "longest", "longest_edge": edge, "merge": merge}}

    def blocks(self) -> list[Any]:
        """See `PackedTower.blocks`."""
        return list(self.vision.transformer.layers)

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`; no attention sees another view, and nothing is padded."""
        grids = patch_grids(batch, self.patch)
        embedded_TV = convolve(batch, self.vision.patch_conv)
        # Rows turn with every second frequency, columns with those between.
        frequencies = self.frequencies(self.head_width)
        rope = axial_rope(grids, frequencies[0::2], frequencies[1::2])
        call = {"attention_mask": None, "position_embeddings": rope, "lengths": [r * c for r, c in grids]}
        hidden_TV = self.run(self.vision.ln_pre(embedded_TV), [call] * self.blocks_run)
        return VisionFeatures(hidden_TV, batch.grids_I2, batch.image_of_view_I)
