"""Make an index hold what folders hold, once or whenever something changes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from vlmkit.cli.ask import positive

if TYPE_CHECKING:
    from vlmkit.cli.index_encoders import Named
    from vlmkit_retrieval import SyncReport
    from vlmkit_retrieval.sync import SyncOptions


def arguments(sync: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit index sync`."""
    sync.add_argument("index", metavar="INDEX", help="the index's directory; made if it does not exist")
    sync.add_argument("paths", nargs="+", metavar="PATH", help="folders or files")
    sync.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="[NAME=]RUN",
        help="of images: a run's directory, or FAMILY:WEIGHTS; may be repeated, with NAME= to tell two of a "
        "family apart; needed once",
    )
    sync.add_argument(
        "--text-encoder",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="of captions, pages and text: a sentence-transformers checkpoint; may be repeated",
    )
    sync.add_argument("--bm25", action="store_true", help="also words of captions, pages and text, by BM25")
    sync.add_argument("--language", default="english", metavar="NAME", help="of BM25's words (english)")
    sync.add_argument("--patches", action="store_true", help="also the patches of each image encoder")
    sync.add_argument(
        "--kinds", metavar="A,B", help="kinds of files: images,text,pdf (those of the last time; images)"
    )
    sync.add_argument(
        "--allow-empty", action="store_true", help="remove all items of a folder that is empty or gone"
    )
    sync.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="images or texts an encoder takes at a time (1, on a GPU 32)",
    )
    sync.add_argument(
        "--share",
        metavar="DIR",
        help="take features that `vlmkit train --share DIR` left there, and leave those of this sync",
    )
    sync.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="look again after so many seconds (5), and sync when something changed, until Ctrl-C",
    )
    sync.add_argument("--json", action="store_true", help="print one JSON object a sync")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0; give e.g. 5")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Exit code 1 says that files were unreadable; everything else is in the index."""
    from vlmkit.cli.index_encoders import best_device, to_sync_with
    from vlmkit.cli.index_watch import watch
    from vlmkit_retrieval.sync import SyncOptions

    kinds = None if args.kinds is None else [kind.strip() for kind in args.kinds.split(",")]
    # Alone, a vector depends on its content and nothing else; a GPU would stand idle most of the time.
    batch = args.batch or (1 if best_device() == "cpu" else 32)
    options = SyncOptions(kinds, allow_empty=args.allow_empty, batch=batch)
    named = to_sync_with(args)
    if args.watch is None:
        return _sync(args, named, options)
    return watch(args.index, args.paths, kinds, args.watch, lambda: _sync(args, named, options))


def _sync(args: argparse.Namespace, named: Sequence[Named], options: SyncOptions) -> int:
    from vlmkit.cli.sync_console import SyncConsole
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.optimize import advice

    with Index.create_or_open(args.index, args.engine) as index, SyncConsole() as console:

        def encoded(name: str, count: int) -> None:
            of_pixels = index.manifest.encoders[name].kind in ("image", "patches")
            console.encoded(name, count, "images" if of_pixels else "texts")

        report = index.sync(
            args.paths,
            [one.encoder for one in named],
            console.files,
            reference=[one.reference for one in named],
            name=[one.name for one in named],
            options=options,
            encoded=encoded,
        )
        hint = advice(index.engine)
    _print(args, report)
    if hint:
        sys.stderr.write(f"{hint}\n")
    return 1 if report.unreadable else 0


def _print(args: argparse.Namespace, report: SyncReport) -> None:
    from vlmkit.cli.console import print_json
    from vlmkit_retrieval.sources import as_line

    if args.json:
        print_json({"index": args.index, **asdict(report)})
        sys.stdout.flush()
        return
    sys.stdout.write(f"{args.index}: {report}\n")
    sys.stdout.flush()
    for item in report.unreadable:
        sys.stderr.write(f"unreadable: {as_line(item.path, item.reason)}\n")
