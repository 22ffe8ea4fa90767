"""Our own Vision Transformer: pre-norm blocks, and what later papers changed about them as options.

Dosovitskiy et al. 2020 (https://arxiv.org/abs/2010.11929). Options are checked in `vit_options.py`, blocks
are in `vit_block.py` and `vit_parts.py`, positions in `vit_positions.py`, other people's weights in
`vit_config.py` and `vit_load.py`.

Shapes: I views, B images, N patches of a view, P prefix + patches of a view, T all of all views, V width,
E retrieval width. What may be (I, P, V) or packed (T, V) has no suffix.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch
from vlmkit.encoders.colours import HALF
from vlmkit.encoders.spec import Resample, Stated, VisionSpec, hidden_state_index
from vlmkit.encoders.values import check_values, rgb
from vlmkit.encoders.vit_block import Block, Place, joined
from vlmkit.encoders.vit_config import read_options
from vlmkit.encoders.vit_load import load_weights
from vlmkit.encoders.vit_options import (
    Mlp,
    Norm,
    Pool,
    Positions,
    Size,
    Stem,
    check_options,
    hidden_width,
    shape_of,
)
from vlmkit.encoders.vit_parts import INIT_STD, ConvStem, MapHead, PatchStem, norm_layer
from vlmkit.encoders.vit_positions import Rope, resized, rope_2d, sincos_2d
from vlmkit_connectors import Grid, VisionFeatures

# These are always part of the stored configuration, the others where they are not as by default: so a run
# from before an option existed keeps its configuration and its fingerprint.
ALWAYS = (
    "image_size", "patch_size", "width", "depth", "heads", "mlp_ratio", "stem", "pool", "embed_dim", "layer",
    "layout", "text_tower",
)  # fmt: skip


class ViT(VisionEncoder):
    """A ViT for views of one size or of several.

    With `weights`, `from_options` takes from the checkpoint what is not given.

    Args:
        image_size: Side of a view in pixels; with layout `native` of the view of a square image.
        patch_size: Side of a patch; with `stem="conv"` a power of two, reached by stride-2 convolutions.
        width, depth, heads, mlp_ratio: Width of the tokens, number of blocks, attention heads, hidden width
            of an MLP over `width`; each in place of the number that `size` has.
        stem: `patch` for one convolution, `conv` for a stack of 3x3 stride-2 convolutions.
        pool: How the retrieval vector comes from the last tokens: `cls`, `mean` of the patches, or `map`.
        embed_dim: Width of the retrieval space; 0 for none.
        layer: Which hidden state feeds the connector (see `VisionSpec.layer`). The last one is normalised.
        layout: Name of the image layout, or a mapping of `type` and options.
        text_tower: Weights reference of the frozen text tower that shares the retrieval space.
        weights: Run of vlmkit, or ViT, DeiT, DINOv2, DINOv3 or timm checkpoint that `from_options` loads; see
            `vit_load.py`.
        size: Published shape by name: Ti, S, B, L, H or g.
        mlp_width: Exact hidden width of an MLP, in place of `mlp_ratio`.
        mlp: `gelu`, or `swiglu`, which by `mlp_ratio` is two thirds as wide, rounded up to a multiple of 8.
        norm: `layer` or `rms`.
        norm_eps: Epsilon of the norms.
        qk_norm: Whether queries and keys are normalised in each head.
        layer_scale: First value of LayerScale; None for none.
        drop_path: Share of the views that skip the last block in training; below it grows linearly from 0.
        class_token: Whether there is a CLS token; None for where `pool` reads it.
        registers: Register tokens after it (Darcet et al. 2023, https://arxiv.org/abs/2309.16588).
        positions: `learned` for one vector a patch, `learned_2d` for one a row plus one a column, `sincos_2d`
            (MoCo v3), `rope_2d` (DINOv3; queries and keys of the patches are turned, the prefix is not).
        position_grid: Rows and columns of a learned table, which is interpolated for other grids; 0 for
            those of `image_size`.
        antialias: See `resized`.
        rope_base: Base of `rope_2d`'s wavelengths.
        projection: Whether a linear head follows `pool`; without it the vector is as wide as the tokens.
        pooled: Whether there is a retrieval vector. Without it there is no head, and of the blocks only those
            up to `layer`, whatever the options of the vector say.
        mean, std: Normalisation of pixels in [0, 1].
        resample: Interpolation of pixels.
        shortest_edge: What layout `crop` brings the shorter edge to; 0 for `image_size`.
    """

    family: ClassVar[str] = "vit"
    any_grid: ClassVar[bool] = True

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_ratio: float | None = None,
        stem: Stem = "patch",
        pool: Pool = "mean",
        embed_dim: int = 0,
        layer: int = -1,
        layout: Stated = "square",
        text_tower: str | None = None,
        weights: str | None = None,
        size: Size = "S",
        mlp_width: int | None = None,
        mlp: Mlp = "gelu",
        norm: Norm = "layer",
        norm_eps: float = 1e-5,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        class_token: bool | None = None,
        registers: int = 0,
        positions: Positions = "learned",
        position_grid: int = 0,
        antialias: bool = True,
        rope_base: float = 100.0,
        projection: bool = True,
        pooled: bool = True,
        mean: Sequence[float] = HALF,
        std: Sequence[float] = HALF,
        resample: Resample = "bicubic",
        shortest_edge: int = 0,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__", "weights", "size")}
        check_values(self.family, options)
        shape = shape_of(size, width, depth, heads, mlp_ratio)
        check_options(options, shape)
        super().__init__(_stored({**options, **vars(shape)}), text_tower, weights)
        self.depth = shape.depth
        self.blocks_run = hidden_state_index(self.family, layer, shape.depth)
        has_cls = pool == "cls" if class_token is None else class_token
        space = (embed_dim if projection else shape.width) if pooled else 0
        self.spec = VisionSpec(
            image_size, patch_size, shape.width, has_cls + registers, layer, layout=layout, embed_dim=space,
            mean=rgb(self.family, "mean", mean), std=rgb(self.family, "std", std), resample=resample,
            shortest_edge=shortest_edge,
        )  # fmt: skip
        self.pool, self.kind, self.antialias, self.rope_base = pool, positions, antialias, rope_base
        self.heads = shape.heads
        self.checkpointing: dict[str, Any] | None = None

        self.stem = (ConvStem if stem == "conv" else PatchStem)(patch_size, shape.width)
        side = position_grid or image_size // patch_size
        self.positions = _vectors(side**2, shape.width) if positions == "learned" else None
        self.cls = _vectors(1, shape.width) if has_cls else None
        hidden = hidden_width(shape, mlp, mlp_width)
        block = partial(Block, shape.width, shape.heads, hidden, mlp, norm, norm_eps, qk_norm, layer_scale)
        built = shape.depth if pooled else self.blocks_run
        ramp = [drop_path * i / max(shape.depth - 1, 1) for i in range(built)]
        self.blocks = nn.ModuleList(block(share) for share in ramp)
        self.norm = norm_layer(norm, shape.width, norm_eps) if built == shape.depth else None
        self.map_head = MapHead(shape.width, shape.heads) if pool == "map" and pooled else None
        self.head = nn.Linear(shape.width, space, bias=False) if space and projection else None
        self.registers = _vectors(registers, shape.width) if registers else None
        self.row_positions = _vectors(side, shape.width) if positions == "learned_2d" else None
        self.col_positions = _vectors(side, shape.width) if positions == "learned_2d" else None
        self.reset_parameters()

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `VisionEncoder.tiny_options`."""
        return {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 2}

    @classmethod
    def resolve(cls, **options: Any) -> dict[str, Any]:
        """See `VisionEncoder.resolve`; reads the checkpoint's configuration and image processor."""
        given = super().resolve(**options)
        weights = options.get("weights")
        return given if weights is None else {**read_options(weights, given), **given}

    def load(self, weights: str) -> None:
        """Load the encoder of a vlmkit run, or another checkpoint; see `load_weights`."""
        load_weights(self, weights)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Positions, CLS and registers from a normal distribution of deviation 0.02."""
        for vectors in (self.positions, self.cls, self.registers, self.row_positions, self.col_positions):
            if vectors is not None:
                nn.init.trunc_normal_(vectors, std=INIT_STD)

    def gradient_checkpointing_enable(self, options: Mapping[str, Any] | None = None) -> None:
        """Keep only the input of each block for the backward pass and compute the block again there.

        Args:
            options: Arguments of `torch.utils.checkpoint.checkpoint`, as transformers' method takes them.
        """
        self.checkpointing = dict(options or {"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Keep what the backward pass needs."""
        self.checkpointing = None

    def forward(self, batch: PixelBatch) -> VisionFeatures:
        """See `VisionEncoder.forward`. Blocks above the selected layer run only for the retrieval vector.

        Views of one size go through as a batch; views of several sizes are packed, nothing is padded.
        """
        hidden, place = self._embed(batch)
        wanted = self.depth if self.spec.embed_dim else self.blocks_run
        selected = hidden
        for i, block in enumerate(list(self.blocks)[:wanted], start=1):
            hidden = self._run(block, place, hidden)
            selected = hidden if i == self.blocks_run else selected
        if wanted == self.depth:
            assert self.norm is not None
            hidden = self.norm(hidden)
            selected = hidden if self.blocks_run == self.depth else selected
        patches_TV = place.patches(selected, self.spec.prefix_tokens)
        pooled_BE = self._pooled(hidden, place, batch.image_of_view_I) if self.spec.embed_dim else None
        return VisionFeatures(patches_TV, batch.grids_I2, batch.image_of_view_I, pooled_BE)

    def _run(self, block: nn.Module, place: Place, x: Tensor) -> Tensor:
        if self.checkpointing is None or not torch.is_grad_enabled():
            result: Tensor = block(x, place)
        else:
            result = checkpoint(block, x, place, **self.checkpointing)
        return result

    def _embed(self, batch: PixelBatch) -> tuple[Tensor, Place]:
        """Tokens of all views with their positions, and how they lie."""
        sizes: list[Grid] = [(int(h), int(w)) for h, w in batch.sizes_I2.tolist()]
        grids: list[Grid] = [(int(r), int(c)) for r, c in batch.grids_I2.tolist()]
        if len(set(sizes)) == 1:
            return self._tokens(batch.pixels_ICHW, grids[0]), Place(None, self._rope(grids[0]))
        views, packed = batch.views(), [torch.empty(0)] * len(sizes)
        for size in dict.fromkeys(sizes):
            same = [i for i, other in enumerate(sizes) if other == size]
            tokens_IPV = self._tokens(torch.stack([views[i] for i in same]), grids[same[0]])
            for i, tokens_PV in zip(same, tokens_IPV, strict=True):
                packed[i] = tokens_PV
        ropes = {grid: self._rope(grid) for grid in dict.fromkeys(grids)}
        lengths = tuple(len(tokens_PV) for tokens_PV in packed)
        return torch.cat(packed), Place(lengths, joined([ropes[grid] for grid in grids]))

    def _tokens(self, pixels_ICHW: Tensor, grid: Grid) -> Tensor:
        """Prefix and patches of views of one size: (I, P, V)."""
        rows, cols = (count * self.spec.patch_size for count in grid)
        hidden_IPV: Tensor = self.stem(pixels_ICHW[..., :rows, :cols])
        table_NV = self._table(grid)
        hidden_IPV = hidden_IPV if table_NV is None else hidden_IPV + table_NV
        prefix = [v.expand(len(hidden_IPV), -1, -1) for v in (self.cls, self.registers) if v is not None]
        return torch.cat([*prefix, hidden_IPV], dim=1) if prefix else hidden_IPV

    def _table(self, grid: Grid) -> Tensor | None:
        """What is added to the patches of a view: (N, V)."""
        if self.positions is not None:
            side = math.isqrt(self.positions.shape[1])
            return resized(self.positions.view(side, side, -1), grid, self.antialias)
        if self.row_positions is not None and self.col_positions is not None:
            table_RCV = self.row_positions.transpose(0, 1) + self.col_positions
            return resized(table_RCV, grid, self.antialias)
        if self.kind == "sincos_2d":
            return sincos_2d(grid, self.spec.width, self.device).to(self.dtype)
        return None

    def _rope(self, grid: Grid) -> Rope | None:
        """How queries and keys of a view are turned."""
        if self.kind != "rope_2d":
            return None
        head = self.spec.width // self.heads
        return rope_2d(grid, self.spec.prefix_tokens, head, self.rope_base, self.device)

    def _pooled(self, last: Tensor, place: Place, image_of_view_I: Tensor) -> Tensor:
        """The retrieval vector of each image, of its first view: (B, E)."""
        vectors = [self._pool(tokens_IPV) for tokens_IPV in place.first(last, image_of_view_I)]
        vector_BV = torch.cat(vectors)
        vector_BE: Tensor = vector_BV if self.head is None else self.head(vector_BV)
        return vector_BE

    def _pool(self, tokens_IPV: Tensor) -> Tensor:
        if self.pool == "cls":
            return tokens_IPV[:, 0]
        patches_INV = tokens_IPV[:, self.spec.prefix_tokens :]
        pooled_IV: Tensor = patches_INV.mean(1) if self.map_head is None else self.map_head(patches_INV)
        return pooled_IV


def _vectors(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, count, width))


def _stored(options: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments as they are written to `config.json`; see `ALWAYS`."""
    defaults = {name: p.default for name, p in inspect.signature(ViT).parameters.items()}
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}
    usual = {n: list(v) if isinstance(v, tuple) else v for n, v in defaults.items()}
    return {name: value for name, value in plain.items() if name in ALWAYS or value != usual[name]}
