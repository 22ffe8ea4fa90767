"""Fill and look at an index of images: sync, copy, info, optimize."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit index`."""
    from vlmkit.cli import index_optimize

    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    sync = actions.add_parser("sync", help="make the index hold what the folders hold")
    sync.add_argument("index", metavar="INDEX", help="the index's directory; made if it does not exist")
    sync.add_argument("paths", nargs="+", metavar="PATH", help="folders or image files")
    sync.add_argument(
        "--encoder", metavar="RUN|NAME", help="a run's directory, or FAMILY:WEIGHTS; needed once"
    )
    sync.add_argument(
        "--allow-empty", action="store_true", help="remove all items of a folder that is empty or gone"
    )
    info = actions.add_parser("info", help="what the index holds")
    info.add_argument("index", metavar="INDEX")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    copy = actions.add_parser("copy", help="copy all items to another index")
    copy.add_argument("index", metavar="A")
    copy.add_argument("target", metavar="B", help="a directory that does not exist, or is empty")
    optimize = actions.add_parser("optimize", help="build an approximate index, measure it, swap it in")
    index_optimize.arguments(optimize)
    for action in (sync, copy):
        action.add_argument(
            "--engine",
            metavar="URL",
            help="http(s)://host:port/collection for the points of a new index; local:engine for local mode",
        )
    for action in (sync, info, copy, optimize):
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    from vlmkit.cli import index_optimize

    return {"sync": _sync, "info": _info, "copy": _copy, "optimize": index_optimize.run}[args.action](args)


def _check_place(directory: str, engine: str | None) -> None:
    """An index is a local directory; only its points can be behind a URL."""
    from vlmkit.errors import UsageError

    if "://" in directory:
        raise UsageError(
            f"{directory} is a URL, an index is a directory; give: DIRECTORY --engine {directory}"
        )
    if engine is not None and "://" not in engine and not engine.startswith("local:"):
        raise UsageError(
            f"--engine {engine} is no URL; give http(s)://host:port/collection, local:engine, or leave it out"
        )


def _sync(args: argparse.Namespace) -> int:
    """Exit code 1 says that files were unreadable; everything else is in the index."""
    from rich.console import Console

    from vlmkit.cli.console import bars
    from vlmkit.cli.search import index_encoder
    from vlmkit.errors import UsageError
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.manifest import MANIFEST
    from vlmkit_retrieval.optimize import advice

    _check_place(args.index, args.engine)
    reference = args.encoder
    if reference is not None:
        # A run is remembered by its full path, so that the index can be used from any folder.
        reference = str(Path(reference).resolve()) if Path(reference).is_dir() else reference
    elif not (Path(args.index) / MANIFEST).exists():
        raise UsageError("the index is new; name the encoder that fills it: --encoder RUN or FAMILY:WEIGHTS")
    with nullcontext() if reference else Index.open(args.index) as known:
        encoder = index_encoder(known, reference)
    with Index.create_or_open(args.index, args.engine) as index, bars(Console(stderr=True)) as progress:
        task = progress.add_task("sync", total=None, values="")
        report = index.sync(
            args.paths,
            encoder,
            reference=reference,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            allow_empty=args.allow_empty,
        )
        hint = advice(index.engine)
    sys.stdout.write(f"{args.index}: {report}\n")
    if hint:
        sys.stderr.write(f"{hint}\n")
    for item in report.unreadable:
        sys.stderr.write(f"unreadable: {item.path}: {item.reason}\n")
    return 1 if report.unreadable else 0


def _info(args: argparse.Namespace) -> int:
    from vlmkit.cli.console import print_json
    from vlmkit.cli.index_optimize import built_lines
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.optimize import advice, built_of

    with Index.open(args.index) as index:
        info, built, hint = index.info(), built_of(index.engine), advice(index.engine)
    if args.json:
        print_json({**info, "optimized": asdict(built), "advice": hint})
    else:
        lines = [f"{name}: {value}" for name, value in info.items()] + built_lines(built)
        sys.stdout.write("".join(f"{line}\n" for line in [*lines, *([hint] if hint else [])]))
    return 0


def _copy(args: argparse.Namespace) -> int:
    from vlmkit_retrieval import copy_index

    _check_place(args.target, args.engine)
    count = copy_index(args.index, args.target, args.engine)
    sys.stdout.write(f"{args.target}: {count} items copied\n")
    return 0
