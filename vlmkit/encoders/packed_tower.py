"""Towers of native resolution that were trained inside a vision-language model: packed, without a vector.

Shapes: T patches of all views, V width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.hub import load_checkpoint, read_config, read_processor
from vlmkit.encoders.packed_layers import blocks_above, shortened
from vlmkit.encoders.processors import stated_pixels
from vlmkit.encoders.spec import VisionSpec, hidden_state_index
from vlmkit.encoders.tower import resolve_options, stated, tower_config, wrong_model
from vlmkit.encoders.values import check_values, rgb
from vlmkit.errors import UsageError


class PackedTower(VisionEncoder):
    """The vision tower of a vision-language model, up to the selected layer.

    Blocks above it are neither built nor loaded: without a retrieval vector nothing reads them. A family
    states class attributes and what is abstract, and computes in `forward`.

    Args:
        given: The family's options by name; `vision_config`, `image_size`, `layer`, `layout`, `mean`, `std`,
            `resample` and `pooled` are among them.
        weights: As for `VisionEncoder`.

    Raises:
        UsageError: A value does not fit.
    """

    any_grid: ClassVar[bool] = True
    config_class: ClassVar[Any]
    # The `transformers` model, its attention packed.
    trunk: ClassVar[Any]
    # The configuration's fields that make the module.
    fields: ClassVar[tuple[str, ...]]
    # Regular expression to replacement: names of a whole model's tensors to those of the tower alone.
    renamed: ClassVar[Mapping[str, str]]
    # The list of blocks, as the names of tensors have it, and the field that holds their number.
    blocks_name: ClassVar[str]
    depth_field: ClassVar[str] = "num_hidden_layers"

    def __init__(self, given: Mapping[str, Any], weights: str | None) -> None:
        check_values(self.family, given)
        if given["pooled"]:
            raise UsageError(
                f"{self.family}: found pooled: true; this tower has no retrieval vector. Leave it out, or "
                "use clip, siglip or siglip2_naflex"
            )
        config = tower_config(self.family, self.config_class, self.fields, given["vision_config"])
        self.check(config, given)
        fields = {name: _plain(value) for name, value in stated(config, self.fields).items()}
        pixels = {name: rgb(self.family, name, given[name]) for name in ("mean", "std")}
        lists = {name: list(value) for name, value in pixels.items()}
        side = self.side(config, given)
        super().__init__({**given, "vision_config": fields, "image_size": side, **lists}, None, weights)
        self.depth, self.patch = fields[self.depth_field], config.patch_size
        self.blocks_run = hidden_state_index(self.family, given["layer"], self.depth)
        stride, width = self.token(config)
        if side < 1 or side % stride:
            raise UsageError(f"{self.family}: image_size {side} is not a multiple of {stride} pixels")
        self.spec = VisionSpec(
            side, stride, width, layer=given["layer"], mean=pixels["mean"], std=pixels["std"],
            layout=given["layout"], resample=given["resample"],
        )  # fmt: skip
        self.theta = float(config.rope_parameters["rope_theta"])
        self.head_width = config.hidden_size // config.num_attention_heads
        self.vision = self.trunk(shortened(config, self.blocks_run, self.depth_field))

    @classmethod
    def check(cls, config: Any, given: Mapping[str, Any]) -> None:
        """Look at what `tower_config` does not.

        Raises:
            UsageError: A value does not fit.
        """
        # Half of a head's channels turn with the row and half with the column, in pairs.
        if config.hidden_size // config.num_attention_heads % 4:
            raise UsageError(
                f"{cls.family}: {config.num_attention_heads} heads of hidden_size {config.hidden_size} have "
                "a width that is no multiple of 4; rotary positions of rows and columns need that"
            )

    @classmethod
    @abstractmethod
    def side(cls, config: Any, given: Mapping[str, Any]) -> int:
        """`image_size`, where it is not given too."""

    @classmethod
    @abstractmethod
    def layout_of(cls, config: Any, tower: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
        """`layout` of a checkpoint's image processor.

        Args:
            config: Of the whole model, or of its tower.
            tower: Of the tower.
            stored: The image processor; not empty.

        Raises:
            UsageError: No layout does what it does.
        """

    def token(self, config: Any) -> tuple[int, int]:
        """Side in pixels of what one feature stands for, and its width."""
        return config.patch_size, config.hidden_size

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        return resolve_options(cls.family, options, cls._read)

    @classmethod
    def _read(cls, weights: str, given: Collection[str]) -> dict[str, Any]:
        config = read_config(weights)
        tower = getattr(config, "vision_config", config)
        if not isinstance(tower, cls.config_class):
            raise wrong_model(cls.family, weights, config.model_type)
        found = {"vision_config": {k: _plain(v) for k, v in stated(tower, cls.fields).items()}}
        stored = read_processor(weights)
        wanted = stored and "layout" not in given
        return found | stated_pixels(stored) | (cls.layout_of(config, tower, stored) if wanted else {})

    def load(self, weights: str) -> None:
        """See `VisionEncoder.load`; `weights` is a checkpoint of the whole model, or of its tower."""
        unread = blocks_above(self.blocks_name, self.blocks_run, self.depth)
        loaded = load_checkpoint(
            self.trunk, weights, unread, config=self.vision.config, key_mapping=dict(self.renamed)
        )
        # A family may have let go of parts of its trunk.
        theirs = loaded.state_dict()
        self.vision.load_state_dict({name: theirs[name] for name in self.vision.state_dict()})

    def run(self, hidden_TV: Tensor, calls: list[dict[str, Any]]) -> Tensor:
        """The hidden state above the blocks, each called with its arguments."""
        for block, arguments in zip(self.blocks(), calls, strict=True):
            hidden_TV = block(hidden_TV, **arguments)
        return hidden_TV

    @abstractmethod
    def blocks(self) -> list[Any]:
        """The tower's blocks."""

    def frequencies(self, width: int) -> Tensor:
        """Angles of one step, the first of them 1 radian: theta ** (-2 i / width) for i below width / 2."""
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=self.device)
        return 1.0 / (self.theta ** (steps / width))


def _plain(value: Any) -> Any:
    """A field as JSON has it."""
    return list(value) if isinstance(value, tuple) else value
