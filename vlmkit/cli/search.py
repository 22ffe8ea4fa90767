"""Find images in an index by text or by image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmkit.encoders.base import VisionEncoder
    from vlmkit_retrieval import Index


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit search`."""
    parser.add_argument("index", metavar="INDEX", help="the index's directory")
    parser.add_argument("query", nargs="?", metavar="QUERY", help="text that describes the images")
    parser.add_argument("--image", metavar="FILE", help="an image to find similar ones of")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="number of hits (10)")
    parser.add_argument(
        "--encoder", metavar="RUN|NAME", help="where the index's encoder is now, if it has moved"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a hit")


def run(args: argparse.Namespace) -> int:
    """Embed the query, search, print."""
    from vlmkit.cli.console import print_json, shown
    from vlmkit.data.sample import open_image
    from vlmkit.errors import UsageError
    from vlmkit_retrieval import Index

    if (not (args.query or "").strip()) == (args.image is None):
        raise UsageError("give a QUERY text or --image FILE, one of the two")
    with Index.open(args.index) as index:
        encoder = index_encoder(index, args.encoder)
        image = open_image(args.image) if args.image else None
        hits = index.search(text=args.query, image=image, embedder=encoder, k=args.k)
    for hit in hits:
        if args.json:
            print_json({"id": hit.id, "score": hit.score, "path": hit.payload["path"]})
        else:
            sys.stdout.write(f"{hit.score:.4f}  {shown(hit.payload['path'])}\n")
    return 0


def index_encoder(index: Index | None, reference: str | None) -> VisionEncoder:
    """The encoder that an index was made by: the one named, or the one that the index remembers.

    Raises:
        UsageError: None is named and the index has none.
    """
    from vlmkit.cli.console import quiet_loading
    from vlmkit.embedders import load_encoder
    from vlmkit.errors import UsageError

    quiet_loading()
    if reference is None:
        known = index.encoder_references() if index is not None else []
        if not known:
            raise UsageError(
                "the index knows no encoder; name the one that fills it: --encoder RUN or FAMILY:WEIGHTS"
            )
        reference = known[0]
        if ":" not in reference and not Path(reference).is_dir():
            raise UsageError(
                f"the index remembers the encoder {reference}, which is gone; give --encoder RUN"
            )
    return load_encoder(reference)
