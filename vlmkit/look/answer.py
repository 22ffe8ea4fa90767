"""Which image tokens an answer's token looked at, inside the language model.

Shapes: L tokens of the prompt and the answer so far, H heads, N image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlmkit import inference
from vlmkit.budget import SizedImage
from vlmkit.data.batch import listed_images
from vlmkit.errors import UsageError
from vlmkit.layouts import Alone
from vlmkit.look.capture import attention_of
from vlmkit.look.scene import NotPossible
from vlmkit.splice import Marks
from vlmkit.vlm import VLM
from vlmkit_connectors import Connector, Grid, Interleaved, LayerInjection

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Looked:
    """Where the language model looked when it chose one token of its answer.

    Attributes:
        answer: The whole answer.
        token: The chosen token as text.
        number, tokens: Its number in the answer, from 1, and how many there are.
        layer, layers: The layer that is shown, from 1, and how many there are.
        heads: Number of heads that the mean is taken over.
        maps: For each view of each image, probabilities on the grid of its tokens.
        cells: Side of the patches behind one token, in patches, one for all.
        share: What the tokens of all views get together; the rest goes to text and to marks (see `Marks`).
        levels: Of each image's layout, by which the token budget was kept (see `VisionSpec.at`).
    """

    answer: str
    token: str
    number: int
    tokens: int
    layer: int
    layers: int
    heads: int
    maps: tuple[Floats, ...]
    cells: int
    share: float
    levels: tuple[int, ...]


@torch.no_grad()
def looked_at(
    model: VLM, images: Sequence[Image.Image], question: str, number: int = 1, layer: int | None = None
) -> Looked:
    """Answer a question, then read the attention by which one token of the answer was chosen.

    That is the attention *from* the last token before it: there the model decides what comes next.

    Args:
        model: In evaluation mode.
        images: One or more.
        question: About them.
        number: Of the answer's token, from 1; a token that ends the answer counts.
        layer: Of the language model, from 1; None for the middle one, the upper of two.

    Raises:
        UsageError: There is no such token or layer.
        NotPossible: The language model's attention, or the places of the image tokens, cannot be read.
    """
    inputs = inference.model_inputs(model, [inference.question(images, question)])
    (sized,) = listed_images(inputs["image_sizes"])
    cells, grids = token_grids(model, sized)
    prompt = inputs["input_ids"].shape[1]
    written = model.generate(**inputs, **inference.DEFAULTS)[0]
    answer = written[prompt:]
    texts = [model.processor.tokenizer.decode([int(i)]) for i in answer]
    if not 1 <= number <= len(answer):
        listed = ", ".join(f"{i} {text!r}" for i, text in enumerate(texts, start=1))
        raise UsageError(f"the answer has no token {number}; its tokens are: {listed}")
    before_1L = written[None, : prompt + number - 1]
    grown = torch.ones_like(before_1L)
    grown[:, :prompt] = inputs["attention_mask"]
    chosen = {"input_ids": before_1L, "attention_mask": grown}
    last_HL, layer, layers = _last_row(model, {**inputs, **chosen}, layer)
    mean_N = last_HL.mean(dim=0)[before_1L[0] == model.config.image_token_id].cpu().numpy()
    text = model.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
    maps = deal(mean_N, grids, model.splice.marks)
    found = (text, texts[number - 1], number, len(answer), layer, layers, len(last_HL))
    levels = tuple(level for _, _, level in sized)
    share = float(sum(own.sum() for own in maps))
    return Looked(*found, maps, cells, share, levels)


def _last_row(model: VLM, inputs: dict[str, Tensor], layer: int | None) -> tuple[Tensor, int, int]:
    """Probabilities (H, L) of the last token's query in a layer, that layer, and how many there are."""
    length = inputs["input_ids"].shape[1]
    # Eager attention is not one call, but hands its probabilities out; other kinds do not.
    kind = model.language_model.config._attn_implementation
    with attention_of(model.language_model) as calls:
        output = model(**inputs, use_cache=False, output_attentions=kind == "eager")
    rows = [c.probabilities(slice(-1, None))[0, :, 0] for c in calls if c.tokens == (length, length)]
    if kind == "eager" and output.attentions:
        rows = [own[0, :, -1].float() for own in output.attentions]
    if not rows:
        raise NotPossible(
            f"the language model's attention ({kind!r}) cannot be read; load it with 'sdpa' or 'eager'"
        )
    layer = len(rows) // 2 + 1 if layer is None else layer
    if not 1 <= layer <= len(rows):
        raise UsageError(f"the language model has no attention layer {layer}; it has 1 to {len(rows)}")
    return rows[layer - 1], layer, len(rows)


def token_grids(model: VLM, images: Sequence[SizedImage]) -> tuple[int, list[list[Grid]]]:
    """Patches along the edge of one image token, and for each image the grid of tokens of each view.

    Args:
        model: Its connector and first encoder's rules count.
        images: Width, height and level of each, as the processor gives them.

    Raises:
        NotPossible: The tokens have no places of their own, or do not come view after view.
    """
    connector, spec = model.connector, model.spec
    if isinstance(connector, LayerInjection):
        raise NotPossible(
            f"image tokens of connector {type(connector).__name__} are not in the sequence, whose attention "
            "is read; take a model with another connector"
        )
    if isinstance(connector, Interleaved) or not isinstance(connector, Connector):
        raise NotPossible(
            f"image tokens of connector {type(connector).__name__} have no place in the image of their own: "
            "several encoders may show one place; a model of one encoder, or fusion: concat, can be read"
        )
    cells: int = 1
    grids: list[list[Grid]] = []
    for width, height, level in images:
        views = spec.features((width, height), level)
        if spec.pieces((width, height), level) != tuple(map(Alone, range(len(views)))):
            raise NotPossible(
                f"layout {spec.layout!r} reorders the tokens of tiles, joins them to one grid, or ends them "
                "with a newline; only tokens that follow view after view are laid out"
            )
        grids.append([])
        for view in views:
            grid = connector.token_grid((view.rows, view.cols))
            if grid is None:
                raise NotPossible(f"the tokens of connector {type(connector).__name__} form no grid")
            cells = max(cells, _cells(connector, (view.rows, view.cols), grid))
            grids[-1].append(grid)
    return cells, grids


def _cells(connector: Connector, patches: Grid, tokens: Grid) -> int:
    """Patches along the edge of the square behind a token; tokens at the right and lower edge may have fewer.

    Raises:
        NotPossible: No square fits.
    """
    sides = range(1, max(patches) + 1)
    fits = [s for s in sides if (-(-patches[0] // s), -(-patches[1] // s)) == tokens]
    # Of several, the largest whose full squares give the same tokens: 9 patches may be 3, 3, 3 or 4, 4, 1.
    whole = [s for s in fits if connector.token_grid((s * tokens[0], s * tokens[1])) == tokens]
    if not fits:
        raise NotPossible(
            f"tokens of connector {type(connector).__name__} are no squares of patches: "
            f"{tokens[0]}x{tokens[1]} for {patches[0]}x{patches[1]}"
        )
    return max(whole or fits)


def deal(
    values_N: Floats,
    grids: Sequence[Sequence[Grid]],
    marks: Marks = Marks(),  # noqa: B008 - frozen
) -> tuple[Floats, ...]:
    """Image tokens in the order of the sequence to the grids of their views; what marks get is left out.

    Args:
        values_N: Of all images.
        grids: Of tokens, for each image those of its views.
        marks: The model's.

    Raises:
        NotPossible: There are more or fewer tokens than the grids have.
    """
    of_view_N = _of_views(grids, marks)
    if len(of_view_N) != len(values_N):
        raise NotPossible(
            f"the image has {len(values_N)} tokens and its views have {len(of_view_N)}: other tokens are "
            "among them, and their places are not known here"
        )
    flat = [grid for own in grids for grid in own]
    ends = np.cumsum([rows * cols for rows, cols in flat])[:-1]
    parts = np.split(values_N[of_view_N], ends)
    return tuple(part.reshape(grid) for part, grid in zip(parts, flat, strict=True))


def _of_views(grids: Sequence[Sequence[Grid]], marks: Marks) -> NDArray[np.bool_]:
    """For each image token whether it is of a view; the others are marks. See `Splice`, which writes them."""
    found: list[bool] = []
    for own in grids:
        found += [False] * marks.image_start
        for rows, cols in own:
            found += ([True] * cols + [False] * marks.row_separator) * rows
        found += [False] * marks.image_end
    return np.array(found, bool)
