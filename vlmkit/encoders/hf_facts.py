"""What a family of `transformers` towers states: class attributes, and answers about its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from vlmkit.encoders.colours import IMAGENET_MEAN, IMAGENET_STD, RGB
from vlmkit.encoders.spec import Resample, Stated
from vlmkit.encoders.tower import stated
from vlmkit.errors import UsageError

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


class Facts:
    """The facts of a family; those without a value are stated by each.

    As they stand they describe a plain ViT whose retrieval vector is its CLS token after the last norm.
    """

    family: ClassVar[str]
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

    @classmethod
    def classes(cls, given: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
        """Classes of the configuration and of the model, and its fields, for what is given."""
        return cls.config_class, cls.model_class, cls.fields

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
