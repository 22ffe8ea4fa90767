"""DINOv3's ConvNeXt (Siméoni et al. 2025, https://arxiv.org/abs/2508.10104).

Shapes: I views, B images, C H W a picture or a map, V width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

from vlmkit.encoders.hf import Block, Defaults, facts
from vlmkit.encoders.pyramid import ConvPyramid

STEM = 4


class DINOv3ConvNextEncoder(ConvPyramid):
    """DINOv3's ConvNeXt; the retrieval vector is the normalised mean of the last stage.

    `layer` counts stages, see `Pyramid`.
    """

    family = "dinov3_convnext"
    config_class, model_class, model_types = DINOv3ConvNextConfig, DINOv3ConvNextModel, ("dinov3_convnext",)
    fields = (
        "image_size", "hidden_sizes", "depths", "hidden_act", "layer_norm_eps", "initializer_range",
        "layer_scale_init_value", "drop_path_rate",
    )  # fmt: skip
    layers, norm = "model.stages", "layer_norm"
    default = Defaults(resample="bilinear", layer=-1)
    tiny = facts(vision_config={"image_size": 64, "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1]})

    def stride(self, config: Any, run: int) -> int:
        """The stem's is no field of the configuration."""
        return STEM << max(run - 1, 0)

    def embed(self, pixels_ICHW: Tensor) -> Tensor:
        """The stem, which is the halving of the first stage."""
        embedded: Tensor = nn.Sequential(*self.vision.model.stages[0].downsample_layers)(pixels_ICHW)
        return embedded

    def blocks(self, pixels_ICHW: Tensor) -> Sequence[Block]:
        """The stages, the first without the stem."""
        first, *rest = self.vision.model.stages
        return [nn.Sequential(*first.layers), *rest]

    def pool(self, last: Tensor) -> Tensor:
        """The normalised mean of the map (B, V, H, W)."""
        vector_BV: Tensor = self.vision.layer_norm(self.vision.pool(last).flatten(1))
        return vector_BV

    def drop_unread(self) -> None:
        """The stem lies in the first stage, which therefore stays."""
        stem_only = self.vision.model.stages[:1] if not self.blocks_run else []
        super().drop_unread()
        for stage in stem_only:
            del stage.layers[:]
            self.vision.model.stages.append(stage)
