"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545) and V2 (https://arxiv.org/abs/2301.00808).

Shapes: B images, V width, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor
from transformers import ConvNextConfig, ConvNextModel, ConvNextV2Config, ConvNextV2Model

from vlmkit.encoders.hf import NOTHING, facts
from vlmkit.encoders.pyramid import ConvPyramid

TINY = {"image_size": 64, "patch_size": 4, "num_stages": 3, "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1]}
# From this side on, a picture is squashed to a square; below it the centre is cut out (as in the paper).
SQUASHED_FROM = 384


class ConvNextEncoder(ConvPyramid):
    """ConvNeXt; the retrieval vector is the normalised mean of the last stage. `layer` counts stages."""

    family = "convnext"
    config_class, model_class, model_types = ConvNextConfig, ConvNextModel, ("convnext",)
    fields: ClassVar[tuple[str, ...]] = (
        "image_size", "patch_size", "num_stages", "hidden_sizes", "depths", "hidden_act", "layer_norm_eps",
        "initializer_range", "layer_scale_init_value", "drop_path_rate",
    )  # fmt: skip
    leftover = r"^classifier\."
    embeddings_arguments, layers = NOTHING, "encoder.stages"
    tiny = facts(vision_config=TINY)

    def pool(self, last: Tensor) -> Tensor:
        """The normalised mean of the map (B, V, H, W)."""
        vector_BV: Tensor = self.vision.layernorm(last.mean([-2, -1]))
        return vector_BV

    @classmethod
    def stated_views(cls, stored: Mapping[str, Any], given: Collection[str], tower: Any) -> dict[str, Any]:
        """ConvNeXt's processor states one number and the share of it that is cut out."""
        if not stored or {"layout", "image_size"} <= set(given):
            return {}
        size = stored["size"]
        side = size if isinstance(size, int) else size["shortest_edge"]
        if side >= SQUASHED_FROM:
            return {"layout": "square", "image_size": side}
        edge = int(side / stored.get("crop_pct", 224 / 256))
        return {"layout": "crop", "image_size": side, "shortest_edge": edge}


class ConvNextV2Encoder(ConvNextEncoder):
    """ConvNeXt V2: as ConvNeXt, with global response normalisation. `layer` counts stages."""

    family = "convnextv2"
    config_class, model_class, model_types = ConvNextV2Config, ConvNextV2Model, ("convnextv2",)
    fields = tuple(name for name in ConvNextEncoder.fields if name != "layer_scale_init_value")
