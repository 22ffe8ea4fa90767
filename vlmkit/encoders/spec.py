"""What a vision encoder states about itself: no weights, and no torch at import.

Workers, `plan` and exporters use a spec without loading a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit.encoders.values import check_values, check_whole
from vlmkit.errors import UsageError, unknown_name
from vlmkit.layouts import Frame, Layout, Piece, View, build_layout
from vlmkit_retrieval.images import as_rgb

Pixels = NDArray[np.float32]
Resample = Literal["bilinear", "bicubic", "lanczos"]
# A layout as a recipe states it: a name from `LAYOUTS`, or a mapping of `type` and options.
Stated = str | dict[str, Any]
RESAMPLES = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# A byte in [0, 1], rounded once from float64 as in the reference processors.
UNIT = (np.arange(256) * (1 / 255)).astype(np.float32)


@dataclass(frozen=True)
class VisionSpec:
    """Stated, never guessed.

    Attributes:
        image_size: Side of the square that a view is brought to, in pixels; with layout `native` the side of
            the view of a square image.
        patch_size: Side of the square of pixels behind one patch token (a stem's total stride).
        width: Width of the patch tokens.
        prefix_tokens: Tokens in front of the patches (CLS, registers) that are dropped.
        layer: Which hidden state is read: an index into [embeddings, block 1, ..., block n], -1 the last.
        mean, std: Per-channel normalisation of pixels in [0, 1].
        layout: How an image becomes views: a name from `LAYOUTS`, or a mapping of `type` and options.
        resample: Interpolation, a name from `RESAMPLES`.
        embed_dim: Width of the retrieval space; 0 if there is none.
        shortest_edge: What layout `crop` brings the shorter edge to; 0 for `image_size`.
        max_patches: Most patches of a view of layout `native`.
    """

    image_size: int
    patch_size: int
    width: int
    prefix_tokens: int = 0
    layer: int = -1
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    layout: Stated = "square"
    resample: Resample = "bicubic"
    embed_dim: int = 0
    shortest_edge: int = 0
    max_patches: int = 0

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLES:
            raise unknown_name("resample", str(self.resample), RESAMPLES)
        check_values("encoder", vars(self))
        if 0 < self.shortest_edge < self.image_size:
            raise UsageError(
                f"shortest_edge {self.shortest_edge} is smaller than image_size {self.image_size}; "
                "give 0, or image_size or more"
            )
        # A wrong layout is found here, not with the first image.
        self.rule.views((self.image_size, self.image_size), self.frame)

    @cached_property
    def rule(self) -> Layout:
        """The layout."""
        return build_layout(self.layout)

    @property
    def frame(self) -> Frame:
        """What layouts need to know."""
        edge = self.shortest_edge or self.image_size
        return Frame(self.image_size, self.patch_size, edge, self.max_patches)

    @property
    def feature_width(self) -> int:
        """Width of what the connector gets: scales of one view are joined channel by channel."""
        return self.width * len(self.rule.scales)

    @cached_property
    def chain(self) -> tuple[Layout, ...]:
        """The layout, and what becomes of it when it is made smaller again and again."""
        chain = [self.rule]
        while (smaller := chain[-1].smaller(self.frame)) is not None:
            chain.append(smaller)
        return tuple(chain)

    def at(self, level: int) -> Layout:
        """The layout made smaller up to `level` times to keep a token budget, see `Layout.smaller`."""
        return self.chain[min(level, len(self.chain) - 1)] if level else self.rule

    def agrees(self, other: VisionSpec) -> bool:
        """Whether both see the same places of every image in the same views, see `Layout.agrees`."""
        return self.rule.agrees(self.frame, other.rule, other.frame)

    def views(self, image_size: tuple[int, int], level: int = 0) -> tuple[View, ...]:
        """The views of an image of (width, height) pixels, each a grid of patches.

        A pure function of sizes: no pixels are needed.

        Args:
            image_size: (width, height).
            level: How often the layout is made smaller, see `at`.
        """
        return self.at(level).views(image_size, self.frame)

    def features(self, image_size: tuple[int, int], level: int = 0) -> tuple[View, ...]:
        """The views as the connector gets them, see `Layout.features`."""
        return self.at(level).features(image_size, self.frame)

    def pieces(self, image_size: tuple[int, int], level: int = 0) -> tuple[Piece, ...]:
        """How the views' tokens enter the sequence, see `Layout.pieces`."""
        return self.at(level).pieces(image_size, self.frame)

    def preprocess(self, image: Image.Image, level: int = 0) -> list[Pixels]:
        """One float32 array of shape (3, height, width), normalised, for each of `views(image.size, level)`.

        Args:
            image: In any mode.
            level: See `views`.
        """
        shapes = [(3, view.height, view.width) for view in self.views(image.size, level)]
        stops = list(accumulate(math.prod(shape) for shape in shapes))
        flat = np.empty(stops[-1], np.float32)
        self.preprocess_into(flat, image, level)
        return [part.reshape(shape) for part, shape in zip(np.split(flat, stops[:-1]), shapes, strict=True)]

    def preprocess_into(self, flat: Pixels, image: Image.Image, level: int = 0, whole: bool = False) -> None:
        """`preprocess` with the views one after the other in `flat`, which holds their numbers exactly.

        Args:
            flat: What is written.
            image: In any mode.
            level: See `views`.
            whole: Only the first view, which shows the whole image.
        """
        done = 0
        views = self.views(image.size, level)[: 1 if whole else None]
        for view, picture in zip(views, self._pictures(image, level, whole), strict=True):
            assert picture.size == (view.width, view.height), "a layout's pictures are those of its views"
            shape = (3, view.height, view.width)
            stop = done + math.prod(shape)
            self._normalise(picture, flat[done:stop].reshape(shape))
            done = stop
        assert done == flat.size, f"{done} numbers for {flat.size}"

    def _pictures(self, image: Image.Image, level: int, whole: bool = False) -> list[Image.Image]:
        fill, rule = tuple(int(m * 255) for m in self.mean), self.at(level)
        given = as_rgb(image), self.frame, RESAMPLES[self.resample], fill
        return [rule.whole(*given)] if whole else rule.pictures(*given)

    @cached_property
    def _normalised(self) -> Pixels:
        """What each of the 256 bytes becomes, a row a channel; order and precision of the references."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return np.ascontiguousarray(((UNIT[:, None] - mean) / std).T)

    def _normalise(self, picture: Image.Image, out_CHW: Pixels) -> None:
        """HWC bytes to CHW floats, each looked up."""
        bytes_HWC = np.asarray(picture)
        for channel, table in enumerate(self._normalised):
            # A byte is always in the table; without "clip" numpy checks it in a copy of the output.
            np.take(table, bytes_HWC[..., channel], out=out_CHW[channel], mode="clip")


def hidden_state_index(family: str, layer: int, depth: int) -> int:
    """How many of `depth` blocks lie below the hidden state `layer` (see `VisionSpec.layer`).

    Raises:
        UsageError: There is no such hidden state.
    """
    check_whole(family, "layer", layer)
    if not -depth - 1 <= layer <= depth:
        raise UsageError(f"{family}: no layer {layer}; with depth {depth}: {-depth - 1} to {depth}")
    return layer + 1 + depth if layer < 0 else layer
