"""Samples as one HTML page that needs nothing beside itself: pictures, tokens and styles are in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from vlmkit.data_check.inspect import Run, ShownImage, ShownSample, ShownStage, ShownToken
from vlmkit.data_check.pictures import DrawnView, drawn_views, original
from vlmkit.data_check.style import STYLE

# Width of a view on the page in pixels; fewer where there are many.
VIEW, MANY = 200, 150
LEGEND = """<p class="legend"><span><span class="learn">supervised</span> with weight 1</span>
<span><span class="learn part">supervised</span> with another weight</span>
<span><span class="slot">image</span> tokens of an image</span>
<span>point at a token: its id, position and weight</span>
<label><input type="checkbox" id="tokens"> borders of tokens</label>
<label><input type="checkbox" id="patches"> borders of patches</label></p>"""


def page(title: str, stages: Sequence[ShownStage]) -> str:
    """The page.

    Args:
        title: Name of the recipe.
        stages: From `show`.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}'
    body = "".join(part for stage in stages for part in _stage(stage))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}: data</title><style>{STYLE}</style></head>\n<body>'
        f"<header><h1>{escape(title)}: samples as the model sees them</h1>{LEGEND}</header>\n"
        f"<main>{body}</main></body></html>\n"
    )


def _stage(stage: ShownStage) -> Iterator[str]:
    yield f"<section><h2>{escape(stage.name)} <small>{escape(stage.about)}</small></h2>\n"
    yield from map(_sample, stage.samples)
    yield "</section>\n"


def _sample(sample: ShownSample) -> str:
    parts = [f'<h3>{escape(sample.id)} <span class="dim">{escape(sample.source)}</span></h3>']
    if sample.error:
        parts.append(f'<p class="error">{escape(sample.error)}</p>')
    originals = [original(image) for image in sample.images]
    pictures = [_image(n, *own) for n, own in enumerate(zip(sample.images, originals, strict=True), 1)]
    parts += [f'<div class="images">{"".join(pictures)}</div>'] * bool(pictures)
    if sample.captions:
        listed = "".join(f"<li>{escape(caption)}</li>" for caption in sample.captions)
        parts.append(f'<p class="dim">captions</p><ul class="captions">{listed}</ul>')
    parts += [_row(row, originals) for row in sample.rows]
    return f"<article>{''.join(parts)}</article>\n"


def _image(number: int, image: ShownImage, uri: str) -> str:
    """The original with the places of views, then the views of each encoder."""
    figures: list[str] = []
    boxes: list[str] = []
    for n, spec in enumerate(image.specs, 1):
        views = list(drawn_views(image, spec))
        encoder = f"encoder {n}, " if len(image.specs) > 1 else ""
        width = VIEW if len(views) <= 4 else MANY
        figures += [_view(view, f"{encoder}view {i}", width) for i, view in enumerate(views, 1)]
        boxes += [_box(view, str(i)) for i, view in enumerate(views, 1) if n == 1]
    whole = _frame(uri, min(image.picture.width, 240), "".join(boxes), image.picture.width < VIEW)
    said = escape(f"image {number}: {image.summary}")
    shown = f"<figure>{whole}<figcaption>{said}</figcaption></figure>"
    return f'<div class="image">{shown}<div class="views">{"".join(figures)}</div></div>'


def _view(view: DrawnView, name: str, width: int) -> str:
    scale = width / max(view.width, view.height)
    cell = f"{100 / view.cols:.4f}% {100 / view.rows:.4f}%"
    grid = f'<div class="grid" style="background-size:{cell}"></div>'
    frame = _frame(view.uri, round(view.width * scale), grid, view.width < width)
    said = f"{escape(name)}: {escape(view.role)}<br>{view.width} x {view.height} px, {view.rows}x{view.cols}"
    return f"<figure>{frame}<figcaption>{said}</figcaption></figure>"


def _frame(uri: str, width: int, inside: str, small: bool) -> str:
    kind = "frame small" if small else "frame"
    return f'<div class="{kind}"><img src="{uri}" width="{width}" alt="">{inside}</div>'


def _box(view: DrawnView, name: str) -> str:
    if view.box is None:
        return ""
    edges = zip(("left", "top", "width", "height"), view.box, strict=True)
    style = ";".join(f"{edge}:{100 * part:.2f}%" for edge, part in edges)
    return f'<div class="box" style="{style}"><b>{name}</b></div>'


def _row(row: Sequence[Run], originals: Sequence[str]) -> str:
    total = sum(len(run.tokens) for run in row)
    learnt = sum(len(run.tokens) for run in row if run.weight)
    branches = [(k, list(own)) for k, own in groupby(row, key=lambda run: run.branch)]
    texts = "".join(_branch(k, own, originals, len(branches) > 1) for k, own in branches)
    head = f"row of {total:,} tokens, {learnt:,} supervised ({learnt / total:.1%})"
    return f'<div class="row"><p>{head}</p>{texts}</div>'


def _branch(number: int, runs: Sequence[Run], originals: Sequence[str], packed: bool) -> str:
    positions = [token.position for run in runs for token in run.tokens]
    name = f"branch {number}" if number else "shared"
    where = f'<span class="where">{name}, positions {positions[0]}-{max(positions)}</span>' if packed else ""
    inside = "".join(_run(run, originals) for run in runs)
    return f'<div class="branch{" own" if number else ""}">{where}{inside}</div>'


def _run(run: Run, originals: Sequence[str]) -> str:
    if run.image is not None:
        places = f"positions {run.tokens[0].position}-{run.tokens[-1].position}"
        picture = f'<img src="{originals[run.image]}" alt="">'
        said = f"image {run.image + 1}: {len(run.tokens):,} tokens"
        return f'<span class="slot" title="{places}">{picture}{said}</span>'
    tokens = "".join(map(_token, run.tokens))
    if not run.weight:
        return tokens
    return f'<span class="{"learn" if run.weight == 1 else "learn part"}">{tokens}</span>'


def _token(token: ShownToken) -> str:
    text = escape(token.text).replace("\n", "⏎\n")
    return f'<i title="id {token.id}, position {token.position}, weight {token.weight:g}">{text}</i>'
