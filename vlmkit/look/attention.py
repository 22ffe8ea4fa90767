"""Attention of an encoder as maps over its views: one head, the mean of heads, or rollout.

Shapes: L layers, H heads, P tokens of one view (prefix + patches).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmkit.encoders.spec import Pixels, VisionSpec
from vlmkit.look.capture import Attended
from vlmkit.look.scene import NotPossible, Scene, encode

# A view's matrices: for each layer the call that has them, and the view's row in that call.
Rows = list[tuple[Attended, int]]


def view_layers(scene: Scene) -> list[Rows]:
    """For each view, where its attention is in the calls of each layer, the first layer first.

    A layer is one call over all views, the shorter ones padded at the end, or one call for each length of
    view. Calls of another form (pooling heads, windows) are no layers here.

    Raises:
        NotPossible: There is no layer, or its tokens do not lie as the patches of the features do.
    """
    layers = _match(scene.calls, _lengths(scene))
    if not layers:
        raise NotPossible(
            f"no attention over all {max(_lengths(scene))} tokens of a view went through torch's "
            f"scaled_dot_product_attention in encoder {scene.encoder.name!r} ({len(scene.calls)} calls of "
            "another form), so it cannot be read"
        )
    _check_order(scene, layers)
    return layers


def _lengths(scene: Scene) -> list[int]:
    prefix = scene.encoder.spec.prefix_tokens
    return [prefix + rows * cols for rows, cols in scene.grids]


def _match(calls: Sequence[Attended], lengths: Sequence[int]) -> list[Rows]:
    """Find the layers among the calls; an empty list if there are none."""
    together = [(len(lengths), max(lengths), range(len(lengths)))]
    by_length = [
        (count, length, [i for i, own in enumerate(lengths) if own == length])
        for length, count in Counter(lengths).items()
    ]
    for pattern in (together, by_length):
        found: list[Rows] = [[] for _ in lengths]
        start = 0
        while start + len(pattern) <= len(calls):
            group = calls[start : start + len(pattern)]
            if all(_is_over(call, views, tokens) for call, (views, tokens, _) in zip(group, pattern)):
                for call, (_, _, members) in zip(group, pattern):
                    for row, view in enumerate(members):
                        found[view].append((call, row))
                start += len(pattern)
            else:
                start += 1
        if found[0]:
            return found
    return []


def _is_over(call: Attended, views: int, tokens: int) -> bool:
    return call.query_IHQA.ndim == 4 and len(call.query_IHQA) == views and call.tokens == (tokens, tokens)


def _check_order(scene: Scene, layers: Sequence[Rows]) -> None:
    """Change the pixels of one patch: in the first layer, the token of its place must change the most.

    Towers may keep patches in another order than their features (blocks that are merged later, windows), and
    a map of such tokens would show the wrong places. A stem of strided convolutions sees the upper left
    corner of its patch in the middle, and half of the next patch too, so only that corner is changed.
    """
    spec, (rows, cols) = scene.encoder.spec, scene.grids[0]
    row, col = (rows - 1, 0) if rows > 1 else (0, cols - 1)
    stated = {field.name: getattr(spec, field.name) for field in fields(VisionSpec)}
    _, calls = encode(scene.encoder, scene.image, _OnePatchChanged(**stated, row=row, col=col))
    changed = _match(calls, _lengths(scene))[0][0]
    before, after = (call.query_IHQA[i].float() for call, i in (layers[0][0], changed))
    moved = int((after - before).square().sum(dim=(0, 2)).argmax())
    if moved != spec.prefix_tokens + row * cols + col:
        raise NotPossible(
            f"encoder {scene.encoder.name!r} keeps its tokens in another order than its patches, so its "
            f"attention cannot be laid out (row {row + 1}, column {col + 1} is token {moved + 1})"
        )


@dataclass(frozen=True)
class _OnePatchChanged(VisionSpec):
    """A spec whose first view has noise in the upper left corner of one patch."""

    row: int = 0
    col: int = 0

    def preprocess_into(self, flat: Pixels, image: Image.Image, level: int = 0, whole: bool = False) -> None:
        """See `VisionSpec.preprocess_into`."""
        super().preprocess_into(flat, image, level, whole)
        view, side = self.views(image.size, level)[0], self.patch_size
        first_CHW = flat[: 3 * view.height * view.width].reshape(3, view.height, view.width)
        edge = max(1, side // 8)
        noise = np.random.default_rng(0).normal(0, 8, (3, edge, edge))
        top, left = self.row * side, self.col * side
        first_CHW[:, top : top + edge, left : left + edge] += noise.astype(np.float32)


def layer_maps(rows: Rows, head: int | None = None) -> Iterator[Tensor]:
    """(P, P) for each layer of one view: of one head (from 0), or the mean of all."""
    for call, row in rows:
        heads_HPP = call.probabilities()[row]
        yield heads_HPP.mean(dim=0) if head is None else heads_HPP[head]


def rollout(layers_LPP: Iterable[Tensor]) -> Tensor:
    """Attention rollout: how much of each input token reaches each output token, (P, P); rows sum to 1.

    Abnar and Zuidema 2020 (https://arxiv.org/abs/2005.00928): each layer is half attention, half the residual
    stream, and layers are multiplied.
    """
    reached_PP = None
    for layer_PP in layers_LPP:
        half_PP = (layer_PP + torch.eye(len(layer_PP), device=layer_PP.device)) / 2
        reached_PP = half_PP if reached_PP is None else half_PP @ reached_PP
    assert reached_PP is not None, "there is at least one layer"
    return reached_PP
