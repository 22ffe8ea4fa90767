"""The contract of a vision encoder: one pass gives the patch tokens for the VLM and the vector for the index.

Shapes: B images, E retrieval width.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vlmkit.encoders.batch import PixelBatch, pixel_batch
from vlmkit.encoders.classify import TEMPLATES, classify
from vlmkit.encoders.spec import VisionSpec
from vlmkit.encoders.text import TextTower, load_text_tower, tensors_hash, text_hash
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit_connectors import VisionFeatures


class VisionEncoder(nn.Module, ABC):
    """A vision tower with its `spec`, built from plain keyword arguments.

    A family is one thin file: the constructor builds random weights from a complete configuration, `resolve`
    turns what a recipe says into that configuration (a hub id into numbers), `load` brings the pretrained
    weights. The constructor's parameters are the options of a recipe. The class satisfies the retrieval
    room's `Embedder` by shape.
    """

    family: ClassVar[str]
    # Whether views may have other sizes than `image_size` squared, and differ within a batch.
    any_grid: ClassVar[bool] = False
    spec: VisionSpec

    def __init__(self, config: Mapping[str, Any], text_tower: str | None, weights: str | None = None) -> None:
        """Remember the complete configuration and, by reference, the text tower that shares the space.

        Raises:
            UsageError: `weights` were given to a constructor, which builds random ones.
        """
        super().__init__()
        if weights is not None:
            raise UsageError(f"weights {weights!r} are not loaded by a constructor; use .from_options(...)")
        self.config = dict(config)
        self.text_tower_ref = text_tower
        self._text_tower: TextTower | None = None
        self._fingerprint: tuple[object, str] = (None, "")

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """Complete the options of a recipe to the constructor's arguments, without loading weights."""
        return {name: value for name, value in options.items() if name != "weights"}

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build with the weights that the option `weights` names, or random ones where it names none.

        Raises:
            UsageError: An option does not exist, or its value does not fit.
            VlmkitError: The weights cannot be read, or do not fit.
        """
        cls._check_options(options)
        encoder = cls(**cls.resolve(**options))
        encoder.check_views()
        weights = options.get("weights")
        if weights is not None:
            encoder.load(weights)
        return encoder

    @classmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        known = inspect.signature(cls).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for name in options:
            if not open_ended and name not in known:
                raise unknown_name(f"option of encoder {cls.family!r}:", name, known)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Constructor options of a twin that is built in an instant, for `--tiny` and for tests.

        Raises:
            UsageError: The class states none.
        """
        raise UsageError(
            f"encoder {cls.__module__}:{cls.__name__} states no tiny twin; give it a classmethod "
            "tiny_options that returns its options at a tiny size"
        )

    def check_views(self) -> None:
        """Refuse a layout whose views the tower cannot take.

        Raises:
            UsageError: Views of another size than the encoder's own.
        """
        side = self.spec.image_size
        views = self.spec.views((2 * side, side))
        if not self.any_grid and any((view.height, view.width) != (side, side) for view in views):
            raise UsageError(
                f"encoder {self.family!r} takes views of {side}x{side} pixels and layout "
                f"{self.spec.layout!r} makes others; use a layout of such squares (crop, pad, anyres, "
                "tiles, ...), or an encoder of any grid (dinov2, dinov3, siglip2_naflex, vit)"
            )

    @abstractmethod
    def load(self, weights: str) -> None:
        """Load pretrained weights by reference; every tensor must find its place."""

    @abstractmethod
    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """Encode; `pooled_BE` is None where the encoder has no retrieval space."""

    @property
    def name(self) -> str:
        """Name of the vector in an index."""
        return self.family

    @property
    def embed_dim(self) -> int:
        """Width of the retrieval space."""
        return self.spec.embed_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit-length vectors of shape (len(images), E).

        Raises:
            VlmkitError: The encoder has no retrieval space.
        """
        if not images:
            return np.zeros((0, self.embed_dim), np.float32)
        return self.embed_batch(pixel_batch(self.spec, images, whole_only=True))

    @torch.no_grad()
    def embed_batch(self, batch: PixelBatch) -> NDArray[np.float32]:
        """`embed_images` of what was preprocessed before.

        Raises:
            VlmkitError: The encoder has no retrieval space.
        """
        with evaluating(self):
            pooled_BE = self(self.move(batch)).pooled_BE
        if pooled_BE is None:
            raise VlmkitError(
                f"encoder {self.name!r} has no retrieval space: its tower has none, or it was built without "
                "one (pooled: false, embed_dim: 0); build it with one, or use clip, siglip or dinov2"
            )
        return _unit(pooled_BE)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length vectors of shape (len(texts), E), comparable with `embed_images`.

        Raises:
            VlmkitError: The encoder has no text tower.
        """
        return _unit(self.text_tower().embed(texts))

    def classify(
        self,
        images: Sequence[Image.Image],
        labels: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        temperature: float | None = None,
    ) -> NDArray[np.float32]:
        """Zero-shot scores of shape (len(images), len(labels)), each in [0, 1].

        They are what the checkpoint was trained to give: CLIP's softmax over the labels, SigLIP's sigmoid of
        each label on its own.

        Args:
            images: In any mode.
            labels: Such as `["cat", "dog"]`.
            templates: Prompts with `{}` for the label; with several, their unit vectors are averaged.
            temperature: Softmax of cosine / temperature, in place of the checkpoint's own scores. Needed
                where the text tower has none for this encoder (a sentence encoder, or a tower of another
                checkpoint): a scale is not guessed.

        Raises:
            UsageError: There are no labels, a template has no `{}`, or a temperature is needed.
            VlmkitError: The encoder has no text tower, or no retrieval space.
        """
        return classify(self, images, labels, templates, temperature)

    def text_tower(self) -> TextTower:
        """The frozen text tower that shares this space; loaded on first use, not part of this module."""
        if self.text_tower_ref is None:
            raise VlmkitError(
                f"encoder {self.name!r} has no text tower, so text cannot be compared with its images; "
                "search by image, or use clip, siglip or a vit trained with the contrastive objective"
            )
        if self._text_tower is None:
            tower = load_text_tower(self.text_tower_ref)
            if tower.embed_dim != self.embed_dim:
                raise VlmkitError(
                    f"text tower {self.text_tower_ref!r} gives {tower.embed_dim} numbers and encoder "
                    f"{self.name!r} {self.embed_dim}; they must be equal to share a space"
                )
            self._text_tower = tower
        return self._text_tower

    def move(self, batch: PixelBatch) -> PixelBatch:
        """Pixels to the encoder's device and type; the small integer tensors stay on the CPU."""
        return batch.to(self.device, self.dtype)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (32 hex digits) of tensors, spec (layer, pooling, preprocessing) and text tower.

        Two encoders with one fingerprint give the same vectors up to the arithmetic of their device and type.
        Tensors are hashed by value: rounding to bfloat16 changes the fingerprint, widening it back does not.
        """
        # Hashing a large tower takes seconds: the hash is kept until a tensor is replaced or written to.
        tensors = self.state_dict(keep_vars=True).values()
        state = tuple((t.data_ptr(), t.dtype, t._version) for t in tensors)
        if self._fingerprint[0] != state:
            self._fingerprint = (state, self.compute_fingerprint())
        return self._fingerprint[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Behind `.to` and the like: rounded values may come to lie where the exact ones lay."""
        self._fingerprint = (None, "")
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def compute_fingerprint(self) -> str:
        """`fingerprint`, made anew: also right after a change of tensors that torch does not count."""
        text = self.text_tower().fingerprint if self.text_tower_ref else None
        config = {k: v for k, v in self.config.items() if k != "text_tower"}
        described = {"family": self.family, "spec": asdict(self.spec), "config": config, "text_tower": text}
        stated = json.dumps(described, sort_keys=True)
        return text_hash(stated + tensors_hash(self))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the encoder's own parameters; submodules have their own."""

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Recompute tables that are not stored in checkpoints."""


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return rows


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule has its own mode back."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


__all__ = ["PixelBatch", "VisionEncoder", "evaluating", "pixel_batch"]
