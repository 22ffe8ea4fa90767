"""Find items in an index by text, by image, or by both."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.cli import asking

if TYPE_CHECKING:
    from PIL import Image

    from vlmkit_retrieval import Index
    from vlmkit_retrieval.search import SearchHit, SearchOptions


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit search`."""
    parser.add_argument("index", metavar="INDEX", help="the index's directory")
    parser.add_argument("query", nargs="?", metavar="QUERY", help="text that describes what to find")
    parser.add_argument("--image", metavar="FILE", help="an image to find similar ones of; also with a QUERY")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="number of hits (10)")
    parser.add_argument(
        "--where",
        metavar="JSON",
        help='only items that match, e.g. \'{"kind": "image", "year": {"$gte": 2019}}\'',
    )
    parser.add_argument("--collapse", action="store_true", help="show items of the same content once")
    parser.add_argument(
        "--near", type=float, metavar="COSINE", help="with --collapse: also those nearer than this, e.g. 0.97"
    )
    parser.add_argument(
        "--mmr", type=float, metavar="PART", help="varied hits: the part of relevance, from 0 to 1, e.g. 0.5"
    )
    parser.add_argument("--by", metavar="SPACE", help="the space in which --near and --mmr compare")
    asking.arguments(parser)
    asking.compose_argument(parser)
    parser.add_argument(
        "--exact", action="store_true", help="compare with every item, even where the index is optimized"
    )
    parser.add_argument("--explain", action="store_true", help="print rank, score and share of every list")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures, scores and why")
    parser.add_argument("--json", action="store_true", help="print one JSON object a hit")


def run(args: argparse.Namespace) -> int:
    """Embed the query, search, print."""
    from vlmkit.data.sample import open_image
    from vlmkit.errors import UsageError
    from vlmkit_retrieval import Index

    query = args.query if (args.query or "").strip() else None
    if query is None and args.image is None:
        raise UsageError("give a QUERY text, --image FILE, or both")
    if args.html and not Path(args.html).absolute().parent.is_dir():
        raise UsageError(f"the folder of {args.html} does not exist; make it, or give another file")
    options = replace(
        asking.options(args),
        mmr=args.mmr,
        collapse=args.collapse,
        near=args.near,
        by=args.by,
        exact=args.exact,
    )
    where = _filter(args.where)
    image = open_image(args.image) if args.image else None
    with Index.open(args.index) as index:
        hits = _hits(index, query, image, args, where, options)
    for hit in hits:
        _print(hit, args.json, args.explain)
    if not hits:
        sys.stderr.write("nothing was found\n")
    if args.html:
        _write_page(args, query, image, hits)
    return 0


def _filter(stated: str | None) -> Mapping[str, Any] | None:
    from vlmkit.errors import UsageError

    if stated is None:
        return None
    try:
        found = json.loads(stated)
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise UsageError(f'--where is no JSON object: {found}; give e.g. --where \'{{"album": "holidays"}}\'')
    return found


def _hits(
    index: Index,
    query: str | None,
    image: Image.Image | None,
    args: argparse.Namespace,
    where: Mapping[str, Any] | None,
    options: SearchOptions,
) -> list[SearchHit]:
    from vlmkit.cli.search_encoders import to_search_with

    encoders = to_search_with(index, args.encoder, text=query is not None, image=image is not None)
    return index.search(query, image, embedder=encoders, k=args.k, where=where, options=options)


def _print(hit: SearchHit, as_json: bool, explain: bool) -> None:
    from dataclasses import asdict

    from vlmkit.cli.console import print_json, shown

    path = str(hit.payload.get("path", hit.id))
    if as_json:
        copies = [str(copy.payload.get("path", copy.id)) for copy in hit.duplicates]
        row: dict[str, Any] = {"id": hit.id, "score": hit.score, "path": path}
        row |= {"duplicates": copies} if copies else {}
        print_json(row | ({"explanation": asdict(hit.explanation)} if explain else {}))
        return
    sys.stdout.write(f"{hit.score:.4f}  {shown(path)}\n")
    for copy in hit.duplicates:
        how = "same content" if copy.cosine is None else f"cosine {copy.cosine:.4f}"
        sys.stdout.write(f"        = {shown(str(copy.payload.get('path', copy.id)))} ({how})\n")
    if explain:
        sys.stdout.write("".join(f"        {line}\n" for line in str(hit.explanation).splitlines()))


def _write_page(
    args: argparse.Namespace, query: str | None, image: Image.Image | None, hits: Sequence[SearchHit]
) -> None:
    from vlmkit_retrieval.search.page import ShownQuery, gallery

    about = f"index {args.index}" + (f" · filter {args.where}" if args.where else "")
    Path(args.html).write_text(gallery(ShownQuery(query, image, about), hits), encoding="utf-8")
    sys.stderr.write(f"{args.html} is written\n")
