"""The panel of an encoder's attention: whose it is, in which layers and heads, and where it goes.

Shapes: P tokens of one view (prefix + patches).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vlmkit.errors import UsageError
from vlmkit.look.attention import Rows, layer_maps, rollout, view_layers
from vlmkit.look.panel import Floats, Options, Panel, Source, patch_in_words
from vlmkit.look.place import Place, place_of
from vlmkit.look.scene import Scene
from vlmkit.vlm import VLM


def attention_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """One head, a mean of heads, or rollout."""
    views = view_layers(scene)
    layers, heads = len(views[0]), views[0][0][0].heads
    _check("attention layer", options.layer, layers)
    _check("head", options.head, heads)
    spec = scene.encoder.spec
    source = _source(scene, options)
    place = place_of(spec, scene.image.size, options.at) if source == "at" else None
    maps_PP = [_map(own, options) for own in views]
    tiles = tuple(
        _from(map_PP, scene, view, source, place if place and place.view == view else None)
        for view, map_PP in enumerate(maps_PP)
    )
    title = (
        f"{_in_words(options, layers, heads)}, from {_whose(source, spec.prefix_tokens, place)} to each patch"
    )
    return [Panel(title, tiles, spec.patch_size, "% of the attention", mark=place)]


def _source(scene: Scene, options: Options) -> Source:
    prefix = scene.encoder.spec.prefix_tokens
    if options.source == "prefix" and not prefix:
        raise UsageError(
            f"encoder {scene.encoder.name!r} has no CLS token or other prefix; take --from mean or at"
        )
    return options.source or ("prefix" if prefix else "mean")


def _is_rollout(options: Options) -> bool:
    return options.layer is None and options.head is None


def _map(own: Rows, options: Options) -> Tensor:
    """(P, P) of one view."""
    if _is_rollout(options):
        return rollout(layer_maps(own))
    chosen = own[-1] if options.layer is None else own[options.layer - 1]
    return next(layer_maps([chosen], None if options.head is None else options.head - 1))


def _from(map_PP: Tensor, scene: Scene, view: int, source: Source, place: Place | None) -> Floats:
    """Percent of one token's attention, or of the patches' mean, that goes to each patch of a view.

    NaN in a view without the patch that is asked for: attention does not go from view to view.
    """
    prefix, (rows, cols) = scene.encoder.spec.prefix_tokens, scene.grids[view]
    patches = slice(prefix, prefix + rows * cols)
    if source == "prefix":
        row_P = map_PP[0]
    elif source == "mean":
        row_P = map_PP[patches].mean(dim=0)
    elif place is not None:
        row_P = map_PP[prefix + place.row * cols + place.col]
    else:
        return np.full((rows, cols), np.nan, np.float32)
    tile: Floats = 100 * row_P[patches].cpu().numpy().reshape(rows, cols)
    return tile


def _in_words(options: Options, layers: int, heads: int) -> str:
    which = f"mean of {heads} heads" if options.head is None else f"head {options.head} of {heads}"
    if _is_rollout(options):
        return f"Attention rollout over layers 1 to {layers}, {which}"
    return f"Attention, layer {options.layer or layers} of {layers}, {which}"


def _whose(source: Source, prefix: int, place: Place | None) -> str:
    if place is not None:
        return patch_in_words(place)
    if source == "mean":
        return "the mean of all patches"
    return "the one prefix token" if prefix == 1 else f"the first of {prefix} prefix tokens"


def _check(kind: str, number: int | None, count: int) -> None:
    if number is not None and not 1 <= number <= count:
        raise UsageError(f"the encoder has no {kind} {number}; it has 1 to {count}")
