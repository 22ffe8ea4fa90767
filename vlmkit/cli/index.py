"""Fill and look at an index: sync, copy, info, forget-encoder, optimize."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from vlmkit.cli import index_optimize, index_sync


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit index`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    sync = actions.add_parser("sync", help="make the index hold what the folders hold")
    index_sync.arguments(sync)
    info = actions.add_parser("info", help="what the index holds")
    info.add_argument("index", metavar="INDEX")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    copy = actions.add_parser("copy", help="copy all items to another index")
    copy.add_argument("index", metavar="A")
    copy.add_argument("target", metavar="B", help="a directory that does not exist, or is empty")
    forget = actions.add_parser("forget-encoder", help="remove an encoder with its vectors")
    forget.add_argument("index", metavar="INDEX")
    forget.add_argument("name", metavar="NAME", help="as `vlmkit index info` shows it")
    optimize = actions.add_parser("optimize", help="build an approximate index, measure it, swap it in")
    index_optimize.arguments(optimize)
    for action in (sync, copy):
        action.add_argument(
            "--engine",
            metavar="URL",
            help="http(s)://host:port/collection for the points of a new index; local:engine for local mode",
        )
    for action in (sync, info, copy, forget, optimize):
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    actions = {
        "sync": _sync,
        "info": _info,
        "copy": _copy,
        "forget-encoder": _forget,
        "optimize": index_optimize.run,
    }
    return actions[args.action](args)


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
    _check_place(args.index, args.engine)
    return index_sync.run(args)


def _forget(args: argparse.Namespace) -> int:
    from vlmkit_retrieval import Index

    with Index.open(args.index) as index:
        index.forget_encoder(args.name)
    sys.stdout.write(f"{args.index}: encoder {args.name} is forgotten, with its vectors\n")
    return 0


def _info(args: argparse.Namespace) -> int:
    from vlmkit.cli.console import print_json
    from vlmkit.cli.index_info import info_lines
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.optimize import advice, built_of

    with Index.open(args.index) as index:
        info, built, hint = index.info(), built_of(index.engine), advice(index.engine)
    if args.json:
        print_json({**info, "optimized": asdict(built), "advice": hint})
    else:
        lines = [*info_lines(info), *index_optimize.built_lines(built), *([hint] if hint else [])]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _copy(args: argparse.Namespace) -> int:
    from vlmkit_retrieval import copy_index

    _check_place(args.target, args.engine)
    count = copy_index(args.index, args.target, args.engine)
    sys.stdout.write(f"{args.target}: {count} items copied\n")
    return 0
