"""What each panel shows, as arrays and words; the table of all panels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlmkit.errors import UsageError
from vlmkit.look.answer import Looked, looked_at
from vlmkit.look.attention_panel import attention_panel
from vlmkit.look.features import cosine_to, principal_colours
from vlmkit.look.panel import Floats, Options, Panel, patch_in_words
from vlmkit.look.place import place_of
from vlmkit.look.positions import position_table, similarity_maps
from vlmkit.look.scene import Scene, pictures_of
from vlmkit.vlm import VLM


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


def similarity_panel(scene: Scene, options: Options, model: VLM | None) -> list[Panel]:
    """One patch compared with all."""
    place = place_of(scene.encoder.spec, scene.image.size, options.at)
    one_V = scene.patches_NV[place.view][place.row * scene.grids[place.view][1] + place.col]
    parts = zip(scene.patches_NV, scene.grids)
    tiles = tuple(cosine_to(patches, one_V).reshape(grid) for patches, grid in parts)
    title = f"Cosine of patch features (hidden state {scene.encoder.spec.layer}) with {patch_in_words(place)}"
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
    pictures_HW3 = pictures_of(scene.encoder.spec, scene.image, looked.levels[0])
    lit = tuple(_lit(picture, own, looked, size) for picture, own in zip(pictures_HW3, looked.maps))
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


Builder = Callable[[Scene, Options, VLM | None], list[Panel]]
PANELS: dict[str, Builder] = {
    "image": image_panel,
    "pca": pca_panel,
    "attention": attention_panel,
    "similarity": similarity_panel,
    "positions": positions_panel,
    "answer": answer_panel,
}
