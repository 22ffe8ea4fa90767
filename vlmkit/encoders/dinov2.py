"""DINOv2, with and without register tokens, as transformers computes it.

Oquab et al. 2023 (https://arxiv.org/abs/2304.07193), Darcet et al. 2023 (https://arxiv.org/abs/2309.16588).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from vlmkit.encoders.hf import (
    DROPOUTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NOTHING,
    VIT_FIELDS,
    Defaults,
    HFEncoder,
    tiny_vit,
)
from vlmkit.errors import UsageError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "DINOv2Encoder"]
REGISTERS = "num_register_tokens"


class DINOv2Encoder(HFEncoder):
    """DINOv2, with or without registers; the retrieval vector is the normalised CLS token, images only.

    `vision_config` has the fields of `Dinov2Config`, and `num_register_tokens` (0 for none).
    """

    family, any_grid = "dinov2", True
    model_types = ("dinov2", "dinov2_with_registers")
    fields = (
        *(name for name in VIT_FIELDS if name != "intermediate_size"), *DROPOUTS, "mlp_ratio", "qkv_bias",
        "layerscale_value", "use_swiglu_ffn", "drop_path_rate", REGISTERS,
    )  # fmt: skip
    embeddings_arguments, layers = NOTHING, "encoder.layer"
    size_is_square = False
    default = Defaults("crop")
    tiny: ClassVar[dict[str, Any]] = {
        **tiny_vit(intermediate_size=None),
        "image_size": 32,
        "shortest_edge": 32,
    }

    @classmethod
    def classes(cls, given: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
        """Registers are another model of transformers, and no field of the one without."""
        registers = given.get(REGISTERS, 0)
        if not isinstance(registers, int) or registers < 0:
            raise UsageError(f"dinov2: found {REGISTERS} {registers!r}; give 0 or more")
        if registers:
            return Dinov2WithRegistersConfig, Dinov2WithRegistersModel, cls.fields
        return _plain_config, Dinov2Model, cls.fields

    def prefix(self, config: Any) -> int:
        """CLS and registers."""
        return 1 + int(config.num_register_tokens)


def _plain_config(**fields: Any) -> Dinov2Config:
    """DINOv2 without registers, which then states that there are none."""
    config = Dinov2Config(**{k: v for k, v in fields.items() if k != REGISTERS})
    config.num_register_tokens = 0
    return config
