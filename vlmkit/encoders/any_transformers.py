"""Any vision model of transformers that gives hidden states: its layout is proved, never guessed.

Shapes: I views, B images, T patches of all views, V width, E width of the model's own pooled vector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_views
from vlmkit.encoders.hf import HALF, expecting, tiny_vit
from vlmkit.encoders.hub import load_checkpoint, read_config
from vlmkit.encoders.probe import Found, as_tokens, hidden_state, probe
from vlmkit.encoders.processors_proof import proved_pixels
from vlmkit.encoders.spec import Resample, Stated, VisionSpec
from vlmkit.encoders.tower import stated
from vlmkit.encoders.values import check_values, rgb
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit_connectors import VisionFeatures

# Heads that the library's own classes for tasks put beside a tower.
HEADS = r"^(classifier|cls_classifier|distillation_classifier|decoder|decode_head|lm_head)\."
# Computed by the configurations of backbones from their depths.
DERIVED = ("stage_names", "out_features", "out_indices")


class TransformersEncoder(VisionEncoder):
    """Any other vision model of transformers, its layout of tokens proved by real forwards (see `probe`).

    The retrieval vector is the model's own `pooler_output`. All hidden states are computed and one is kept: a
    family with a file of its own needs less memory. With `weights`, preprocessing is taken from the image
    processor of the checkpoint, and proved on pictures. The probe of a ViT-B takes a minute on two cores.

    Args:
        vision_config: `model_type`, and fields of its configuration; absent ones have its defaults.
        tokens: What the probe found, so that a saved model needs no probe; where it is absent, or of another
            model, `image_size`, `layer` or `pooled`, it is run.
        image_size: Side of a view in pixels; absent: the configuration's.
        shortest_edge: What the layout `crop` brings the shorter edge to; 0 for `image_size`.
        layer: An index into the hidden states that the model gives, from the first or (-1) from the last.
        layout: Name of the image layout.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        pooled: Whether the pooled vector is read; without it a pooler that a checkpoint lacks is left out.
        leftover: Regular expression of what else a checkpoint may hold, such as a classifier.
        weights: Hub id or folder; in place of `vision_config`.
    """

    family: ClassVar[str] = "transformers"

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        tokens: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        shortest_edge: int = 0,
        layer: int = -1,
        layout: Stated = "square",
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Resample = "bicubic",
        pooled: bool = True,
        leftover: str = HEADS,
        weights: str | None = None,
    ) -> None:
        pixels = {"mean": mean, "std": std, "resample": resample}
        given = {"image_size": image_size, "shortest_edge": shortest_edge, "layer": layer, "pooled": pooled}
        check_values(self.family, given | pixels)
        config = _config(vision_config)
        side = _side(config, image_size)
        self.found = _known(tokens, _subject(config, side, layer, pooled)) or find(
            config, side, layer, pooled
        )
        views = {"image_size": side, "shortest_edge": shortest_edge, "layer": layer, "layout": layout}
        pixels |= {"mean": list(mean), "std": list(std)}
        proved = _stored(self.found, _subject(config, side, layer, pooled))
        made = {"vision_config": _fields(config), "tokens": proved, "pooled": pooled}
        super().__init__({**made, **views, **pixels, "leftover": leftover}, None, weights)
        self.pooled, self.leftover = pooled, leftover
        self.spec = VisionSpec(
            side, _stride(config, side, self.found.grid), self.found.width, self.found.prefix, layer,
            rgb(self.family, "mean", mean), rgb(self.family, "std", std), layout, resample,
            embed_dim=self.found.vector if pooled else 0, shortest_edge=shortest_edge,
        )  # fmt: skip
        self.vision = _build(config, pooled)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `VisionEncoder.tiny_options`."""
        return {"vision_config": {"model_type": "vit_msn", **tiny_vit()["vision_config"]}}

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and processor, and probes."""
        check_values(cls.family, options)
        resolved = {name: value for name, value in options.items() if name != "weights"}
        weights = options.get("weights")
        if weights is not None:
            if resolved.get("vision_config") is not None:
                raise UsageError("transformers: found weights and vision_config; give one of them")
            resolved["vision_config"] = _fields(read_config(weights))
            resolved = {**proved_pixels(weights, resolved), **resolved}
        if resolved.get("tokens") is None:
            config = _config(resolved.get("vision_config"))
            side = _side(config, resolved.get("image_size"))
            layer, pooled = resolved.get("layer", -1), resolved.get("pooled", True)
            found = find(config, side, layer, pooled)
            resolved["tokens"] = _stored(found, _subject(config, side, layer, pooled))
        return resolved

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`."""
        cls = expecting(type(self.vision), self.leftover)
        optional = "" if self.pooled else r"^pooler\."
        theirs = load_checkpoint(cls, weights, optional, config=self.vision.config).state_dict()
        self.vision.load_state_dict({name: theirs[name] for name in self.vision.state_dict()})

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`."""
        state, vector_IE = hidden_state(self.vision, batch.pixels_ICHW, self.spec.layer)
        first, count = self.found.prefix, self.found.grid**2
        patches_TV = as_tokens(state, self.found.form)[:, first : first + count].flatten(0, 1)
        pooled_BE = None
        if self.spec.embed_dim and vector_IE is not None:
            pooled_BE = first_views(vector_IE, batch.image_of_view_I)
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)


def find(config: PreTrainedConfig, side: int, layer: int, pooled: bool) -> Found:
    """Probe a model of this configuration with random weights, on the CPU; see `probe`."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        return probe(_build(config, pooled).eval(), side, layer)


def _subject(config: Any, side: int, layer: int, pooled: bool) -> dict[str, Any]:
    """What a proof is about, as JSON has it."""
    of = {"vision_config": _fields(config), "side": side, "layer": layer, "pooled": pooled}
    plain: dict[str, Any] = json.loads(json.dumps(of, default=str))
    return plain


def _stored(found: Found, subject: Mapping[str, Any]) -> dict[str, Any]:
    """What was proved, and of what."""
    return {**asdict(found), "of": dict(subject)}


def _known(tokens: Mapping[str, Any] | None, subject: Mapping[str, Any]) -> Found | None:
    """What was proved before; None if it was of another model, other views or another hidden state."""
    if tokens is None or tokens.get("of") != subject:
        return None
    return Found(**{name: value for name, value in tokens.items() if name != "of"})


def _build(config: PreTrainedConfig, pooled: bool) -> nn.Module:
    """The model; without a pooler of its own weights where its vector is not read."""
    model: Any = AutoModel.from_config(config)
    if model.main_input_name != "pixel_values":
        raise VlmkitError(
            f"transformers: a {config.model_type!r} model takes {model.main_input_name}, not pixel_values; "
            "give the checkpoint of a vision model"
        )
    pooler = getattr(model, "pooler", None)
    if not pooled and pooler is not None and list(pooler.parameters()):
        model.pooler = None
    built: nn.Module = model
    return built


def _config(given: Mapping[str, Any] | None) -> Any:
    """A configuration from its fields; an unknown one is refused."""
    if given is None or given.get("model_type") not in CONFIG_MAPPING:
        raise UsageError(
            f"transformers: found model_type {(given or {}).get('model_type')!r}; give weights (a hub id or "
            "folder), or vision_config with a model_type of transformers, such as vit_msn, and its fields"
        )
    known = CONFIG_MAPPING[given["model_type"]]().to_dict()
    for name in given:
        if name not in known:
            raise unknown_name(f"{given['model_type']} vision_config field", name, known)
    return AutoConfig.for_model(**given)


def _fields(config: Any) -> dict[str, Any]:
    """What of a configuration is the model's own; what every configuration has is bookkeeping."""
    common = {*PreTrainedConfig().to_dict(), *DERIVED}
    names = [name for name in type(config)().to_dict() if name not in common]
    found = {"model_type": config.model_type, **{name: getattr(config, name) for name in names}}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in found.items()}


def _side(config: Any, given: int | None) -> int:
    own = stated(config, ["image_size"])["image_size"] if hasattr(config, "image_size") else None
    side = own if given is None else given
    if not isinstance(side, int) or side < 1:
        raise UsageError(f"transformers: found image_size {side!r}; give the side of a view in pixels")
    return side


def _stride(config: Any, side: int, grid: int) -> int:
    """Side of a cell: a whole number, or the patch where the last pixels are not looked at."""
    if side % grid == 0:
        return side // grid
    patch = stated(config, ["patch_size"])["patch_size"] if hasattr(config, "patch_size") else None
    if isinstance(patch, int) and side // patch == grid:
        return patch
    raise VlmkitError(
        f"transformers: a view of {side} pixels gives {grid} rows of tokens, which is no whole number of "
        "pixels a token; give an image_size that is"
    )
