"""Hits as one HTML page that needs nothing beside itself: pictures and styles are in it, and no script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from vlmkit_retrieval.search.hits import Duplicate, SearchHit, Share
from vlmkit_retrieval.search.page_style import COLOURS, STYLE
from vlmkit_retrieval.search.pictures import Thumbnail, file_picture, thumbnail, thumbnail_of

# The page may load nothing and run nothing, whatever a caption says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# A text longer than this is folded.
_FOLD = 160


@dataclass(frozen=True)
class ShownQuery:
    """What was searched for.

    Attributes:
        text: In words.
        image: As a picture.
        about: Where, in words: the index, the filter.
    """

    text: str | None = None
    image: Image.Image | None = None
    about: str = ""


def gallery(
    query: ShownQuery,
    hits: Sequence[SearchHit],
    picture: Callable[[SearchHit], Image.Image | None] = file_picture,
) -> str:
    """The page: the query on top, a card for each hit with its picture, its text, its score and why.

    Args:
        query: What was searched for.
        hits: Best first.
        picture: A hit's picture, None where it has none. Where it raises a `RetrievalError`, the card says
            why.
    """
    lists = list(dict.fromkeys(share.list for hit in hits for share in hit.explanation.shares))
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(lists)}
    best = max((abs(hit.score) for hit in hits), default=0.0) or 1.0
    cards = "".join(_card(n, hit, best, colours, thumbnail_of(hit, picture)) for n, hit in enumerate(hits, 1))
    title = _text(query.text or "search by image")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>{_header(query, hits, colours)}\n"
        f"<main>{cards or _NOTHING}</main></body></html>\n"
    )


_NOTHING = (
    '<p class="nothing">Nothing was found. Is the index filled, and does the filter let anything through?</p>'
)


def _header(query: ShownQuery, hits: Sequence[SearchHit], colours: dict[str, str]) -> str:
    image = thumbnail(query.image) if query.image is not None else None
    picture = f'<img class="asked" src="{image.uri}" alt="the image of the query">' if image else ""
    words = f'<h1 dir="auto">{_text(query.text)}</h1>' if query.text else "<h1>Images like this one</h1>"
    count = f"{len(hits)} {'hit' if len(hits) == 1 else 'hits'}"
    about = " · ".join([count, *([_text(query.about)] if query.about else [])])
    return (
        f'<header>{picture}<div><p class="eyebrow">{_kind(query)}</p>{words}<p class="dim">{about}</p>'
        f"{_legend(hits, colours)}</div></header>"
    )


def _kind(query: ShownQuery) -> str:
    if query.image is None:
        return "Search by text"
    return "Search by image" if query.text is None else "Search by image and text"


def _legend(hits: Sequence[SearchHit], colours: dict[str, str]) -> str:
    if not any(hit.explanation.fused for hit in hits):
        return ""
    weights = {share.list: share.weight for hit in hits for share in hit.explanation.shares}
    items = [
        f'<span><i style="background:{colour}"></i>{_text(name)}'
        f"{f' <b>×{weights[name]:g}</b>' if weights[name] != 1 else ''}</span>"
        for name, colour in colours.items()
    ]
    if any(share.imputed for hit in hits for share in hit.explanation.shares):
        items.append('<span><i class="imputed"></i>concluded: the item has no vector there</span>')
    return f'<p class="legend">{"".join(items)}</p>'


def _card(number: int, hit: SearchHit, best: float, colours: dict[str, str], shown: Thumbnail | str) -> str:
    said = str(hit.payload.get("caption") or hit.payload.get("text") or "")
    path = _text(str(hit.payload.get("path", hit.id)))
    folder, _, name = path.rpartition("/")
    page = f" · page {hit.payload['page']}" if isinstance(hit.payload.get("page"), int) else ""
    return (
        f'<article><div class="frame">{_picture(shown)}<b class="rank">{number}</b></div>'
        f'<div class="body">{_bar(hit, best, colours)}{_words(said)}'
        f'<p class="path" title="{path}"><bdi>{name}</bdi>{page}<small><bdi>{folder}</bdi></small></p>'
        f"{_why(hit, colours)}{_duplicates(hit.duplicates)}</div></article>\n"
    )


def _picture(shown: Thumbnail | str) -> str:
    if isinstance(shown, str):
        return f'<p class="none">{_text(shown)}</p>'
    small = ' class="small"' if shown.small else ""
    return (
        f'<img src="{shown.uri}" width="{shown.width}" height="{shown.height}" alt=""{small} loading="lazy">'
    )


def _bar(hit: SearchHit, best: float, colours: dict[str, str]) -> str:
    """The score as a part of the best one's, cut into what each list adds."""
    parts = "".join(
        f'<i style="width:{100 * max(0.0, share.share) / best:.2f}%;--c:{colours[share.list]}"'
        f'{" class=imputed" if share.imputed else ""} title="{_text(str(share))}"></i>'
        for share in hit.explanation.shares
    )
    return f'<div class="score"><div class="bar">{parts}</div><b>{hit.score:.4f}</b></div>'


def _words(said: str) -> str:
    if len(said) <= _FOLD:
        return f'<p class="words" dir="auto">{_text(said)}</p>' if said else ""
    start = said[:_FOLD].rsplit(maxsplit=1)[0]
    return f'<details class="words" dir="auto"><summary>{_text(start)} …</summary>{_text(said)}</details>'


def _why(hit: SearchHit, colours: dict[str, str]) -> str:
    rows = "".join(
        f"<tr>{''.join(_cells(share, colours[share.list]))}</tr>" for share in hit.explanation.shares
    )
    nearest = hit.explanation.nearest
    note = (
        f'<p class="note">cosine {nearest:.3f} to the most similar hit above</p>'
        if nearest is not None
        else ""
    )
    if not hit.explanation.fused:
        [share] = hit.explanation.shares
        return f'<p class="note">{_text(share.list)}, rank {share.rank:g}</p>{note}'
    head = "<tr><th>list</th><th>rank</th><th>score</th><th>adds</th></tr>"
    return f"<table>{head}{rows}</table>{note}"


def _cells(share: Share, colour: str) -> Iterator[str]:
    kind = ' class="imputed"' if share.imputed else ""
    yield f'<td><i{kind} style="--c:{colour}"></i>{_text(share.list)}</td>'
    if share.imputed:
        rank = f"≈ {share.rank:.0f}" if share.rank is not None else "–"
        yield f'<td title="no vector there; concluded from the other lists">{rank}</td><td>–</td>'
    elif share.rank is None:
        yield "<td>–</td><td>–</td>"
    else:
        yield f"<td>{share.rank:g}</td><td>{share.score:.3f}</td>"
    yield f"<td>{share.share:.4f}</td>"


def _duplicates(copies: Sequence[Duplicate]) -> str:
    if not copies:
        return ""
    rows = "".join(map(_duplicate, copies))
    return f'<details class="copies"><summary>and {len(copies)} like it</summary><ul>{rows}</ul></details>'


def _duplicate(copy: Duplicate) -> str:
    how = "same content" if copy.cosine is None else f"cosine {copy.cosine:.3f}"
    path = _text(str(copy.payload.get("path", copy.id)))
    return f'<li><bdi>{path}</bdi> <span class="dim">{how}</span></li>'


def _text(text: str) -> str:
    """Text of strangers for HTML: escaped, control characters and halves of surrogate pairs replaced."""
    valid = text.encode("utf-8", "replace").decode()
    return escape("".join(c if c.isprintable() or c in "\n\t\u200d" else "\ufffd" for c in valid))
