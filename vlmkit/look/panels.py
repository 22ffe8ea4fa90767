"""What each panel shows, as arrays and words; nothing is drawn here.

Rows and columns, layers, heads and answer tokens count from 1 in what users read and give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vlmkit.errors import UsageError
from vlmkit.look.answer import Looked, looked_at
from vlmkit.look.attention import mean_heads, rollout, view_layers
from vlmkit.look.features import cosine_to, principal_colours
from vlmkit.look.place import Place, place_of
from vlmkit.look.positions import position_table, similarity_maps
from vlmkit.look.scene import Scene
from vlmkit.vlm import VLM

Floats = NDArray[np.float32]
Source = Literal["prefix", "mean", "at"]
SOURCES: tuple[Source, ...] = ("prefix", "mean", "at")


@dataclass(frozen=True)
class Options:
    """What to show; None for the default.

    Attributes:
        head: Attention head of the encoder; without it the mean of all.
        layer: Its attention layer; without it, and without a head, rollout over all.
        source: Whose attention: of the first `prefix` token, the `mean` of all patches, the patch `at`.
        at: (x, y) in pixels of the original image; None for its centre.
        question: For a VLM.
        token: Of its answer.
        llm_layer: Attention layer of the language model; None for the middle one.
    """

    head: int | None = None
    layer: int | None = None
    source: Source | None = None
    at: tuple[float, float] | None = None
    question: str | None = None
    token: int = 1
    llm_layer: int | None = None


@dataclass(frozen=True)
class Panel:
    """One panel of the picture.

    Attributes:
        title: Says exactly what is shown.
        tiles: One for each view: colours (rows, cols, 3) in [0, 1], or numbers (rows, cols).
        cell: Pixels of the view along the edge of one cell of a tile.
        scale: What the numbers are; None for colours.
        mark: A patch to mark.
        grid: Side of the patches whose borders are drawn over it, in pixels; 0 for none.
        views: Whether the tiles are the views of the image; else the panel has one picture of another kind.
    """

    title: str
    tiles: tuple[Floats, ...]
    cell: int = 1
    scale: str | None = None
    mark: Place | None = None
    grid: int = 0
    views: bool = True


def image_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """The views with their patches."""
    spec = scene.encoder.spec
    grids = ", ".join(dict.fromkeys(f"{rows} x {cols}" for rows, cols in scene.grids))
    count = f"{len(scene.grids)} view{'s' * (len(scene.grids) > 1)}"
    title = f"What the encoder gets: {count}, {grids} patches (rows x columns) of {spec.patch_size} px"
    return [Panel(title, scene.pictures_HW3, grid=spec.patch_size)]


def pca_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """Principal components as colours."""
    found = principal_colours(np.concatenate(scene.patches_NV))
    ends = np.cumsum([rows * cols for rows, cols in scene.grids])[:-1]
    parts = zip(np.split(found.colours_TC, ends), scene.grids)
    shares = ", ".join(f"{share:.0%}" for share in found.shares)
    title = (
        f"PCA of patch features (hidden state {scene.encoder.spec.layer}): red, green, blue are components "
        f"1, 2, 3 with {shares} of the variance"
    )
    tiles = tuple(colours.reshape(*grid, 3) for colours, grid in parts)
    return [Panel(title, tiles, scene.encoder.spec.patch_size)]


def attention_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """One head, a mean of heads, or rollout."""
    views = view_layers(scene)
    layers, heads = len(views[0]), views[0][0][0].heads
    _check("attention layer", options.layer, layers)
    _check("head", options.head, heads)
    prefix = scene.encoder.spec.prefix_tokens
    source = options.source or ("prefix" if prefix else "mean")
    if source == "prefix" and not prefix:
        raise UsageError(
            f"encoder {scene.encoder.name!r} has no CLS token or other prefix; take --from mean or at"
        )
    rows = options.layer is None and options.head is None
    chosen = options.layer or layers
    head = None if options.head is None else options.head - 1
    maps_PP = [
        rollout(mean_heads(own)) if rows else mean_heads(own[chosen - 1 : chosen], head)[0] for own in views
    ]
    place = place_of(scene.encoder.spec, scene.image.size, options.at) if source == "at" else None
    tiles = []
    for number, ((high, wide), map_PP) in enumerate(zip(scene.grids, maps_PP)):
        tiles.append(_from(map_PP, prefix, source, place, number, (high, wide)))
    how = f"Attention rollout over layers 1 to {layers}" if rows else f"Attention, layer {chosen} of {layers}"
    which = f"mean of {heads} heads" if head is None else f"head {options.head} of {heads}"
    title = f"{how}, {which}, from {_source_in_words(source, prefix, place)} to each patch"
    size = scene.encoder.spec.patch_size
    return [Panel(title, tuple(tiles), size, "% of the attention", mark=place)]


def _from(
    map_PP: torch.Tensor, prefix: int, source: Source, place: Place | None, view: int, grid: tuple[int, int]
) -> Floats:
    """Percent of one token's attention, or of the patches' mean, that goes to each patch of a view."""
    if source == "prefix":
        row_P = map_PP[0]
    elif source == "mean":
        row_P = map_PP[prefix : prefix + grid[0] * grid[1]].mean(dim=0)
    else:
        assert place is not None
        row_P = map_PP[prefix + place.row * grid[1] + place.col]
        if place.view != view:
            row_P = torch.full_like(row_P, torch.nan)
    tile: Floats = 100 * row_P[prefix : prefix + grid[0] * grid[1]].cpu().numpy().reshape(grid)
    return tile


def _source_in_words(source: Source, prefix: int, place: Place | None) -> str:
    if place is not None:
        return _patch_in_words(place)
    if source == "mean":
        return "the mean of all patches"
    return "the one prefix token" if prefix == 1 else f"the first of {prefix} prefix tokens"


def _patch_in_words(place: Place) -> str:
    view = f" of view {place.view + 1}" if place.view else ""
    return f"the marked patch (row {place.row + 1}, column {place.col + 1}{view})"


def similarity_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """One patch compared with all."""
    place = place_of(scene.encoder.spec, scene.image.size, options.at)
    one_V = scene.patches_NV[place.view][place.row * scene.grids[place.view][1] + place.col]
    parts = zip(scene.patches_NV, scene.grids)
    tiles = tuple(cosine_to(patches, one_V).reshape(grid) for patches, grid in parts)
    title = (
        f"Cosine of patch features (hidden state {scene.encoder.spec.layer}) with {_patch_in_words(place)}"
    )
    return [Panel(title, tiles, scene.encoder.spec.patch_size, "cosine", mark=place)]


def positions_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """The table of positions."""
    table, side = position_table(scene.encoder)
    picture, chosen = similarity_maps(table, side)
    some = f" ({len(chosen)} x {len(chosen)} of them are drawn)" if len(chosen) < side else ""
    title = (
        f"Position embeddings as stored: one small map for each position{some}, its cosine with all "
        f"{side} x {side} positions"
    )
    return [Panel(title, (picture,), scale="cosine", views=False)]


def answer_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """Where the language model looked, on its tokens and over the image."""
    if model is None or options.question is None:
        raise UsageError("the panel 'answer' needs a run with a language model, and --question TEXT")
    looked = looked_at(model, [scene.image], options.question, options.token, options.llm_layer)
    size = looked.cells * scene.encoder.spec.patch_size
    what = (
        f"Token {looked.number} of {looked.tokens} of the answer ({looked.token!r}), as it was chosen: "
        f"attention to image tokens in LLM layer {looked.layer} of {looked.layers}, mean of {looked.heads} "
        f"heads; {looked.share:.0%} of it is on the image"
    )
    lit = tuple(_lit(picture, own, looked, size) for picture, own in zip(scene.pictures_HW3, looked.maps))
    over = (
        f"The same over the image: black is no attention, full brightness the most; answer {looked.answer!r}"
    )
    tiles = tuple(100 * own for own in looked.maps)
    return [Panel(what, tiles, size, "% of the attention"), Panel(over, lit)]


def _lit(picture: Floats, own: Floats, looked: Looked, size: int) -> Floats:
    """A view darkened where there is little attention."""
    most = max(float(view.max()) for view in looked.maps)
    bright = np.kron(own / most, np.ones((size, size), np.float32))[: len(picture), : picture.shape[1]]
    lit: Floats = np.zeros_like(picture)
    lit[: len(bright), : bright.shape[1]] = bright[..., None]
    return lit * picture


def _check(kind: str, number: int | None, count: int) -> None:
    if number is not None and not 1 <= number <= count:
        raise UsageError(f"the encoder has no {kind} {number}; it has 1 to {count}")


Builder = Callable[[Scene, Options, VLM | None], list[Panel]]
PANELS: dict[str, Builder] = {
    "image": image_panel,
    "pca": pca_panel,
    "attention": attention_panel,
    "similarity": similarity_panel,
    "positions": positions_panel,
    "answer": answer_panel,
}
