"""Check the data of a recipe before anything trains, or show samples as the model sees them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.cli.ask import positive
from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit.recipe import Recipe


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit data`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="read every row, open every image, make every row of tokens")
    _recipe(check)
    check.add_argument(
        "--json", metavar="FILE", help="write all findings, with all ids; - for stdout instead of the tables"
    )
    check.add_argument(
        "--workers", type=_count, metavar="N", help="processes (one a core); 0 works in this one"
    )
    check.add_argument("--limit", type=positive, metavar="N", help="only the first N samples of each source")
    inspect = actions.add_parser("inspect", help="samples as the model sees them")
    _recipe(inspect)
    inspect.add_argument(
        "-n", type=positive, default=5, metavar="N", help="samples a stage, evenly spaced over its data (5)"
    )
    inspect.add_argument("--html", metavar="FILE", help="write one page with the views of the images instead")
    inspect.add_argument("--stage", metavar="NAME", help="one stage, or evaluate (all)")
    inspect.add_argument("--id", metavar="ID", help="the sample of this id")


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    parser.add_argument(
        "--fetch", action="store_true", help="download tokenizer and config.json where they are not here"
    )
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 says that training would stop at something; for `inspect`, that a shown sample is bad."""
    from vlmkit.assemble import check_blocks
    from vlmkit.recipe import load_recipe

    target = args.json if args.action == "check" else args.html
    folder = Path(target or ".").resolve().parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; make it, or give another file")
    recipe = load_recipe(args.recipe, args.overrides, check_blocks)
    return _check(recipe, args) if args.action == "check" else _inspect(recipe, args)


def _check(recipe: Recipe, args: argparse.Namespace) -> int:
    from vlmkit.cli.console import TrainConsole, print_json
    from vlmkit.cli.data_report import print_report
    from vlmkit.data_check.check import check_data

    workers = args.workers if args.workers is not None else os.cpu_count() or 1
    with TrainConsole() as console:
        report = check_data(recipe, console.working, workers, args.limit, args.fetch)
    if args.json == "-":
        print_json(report.as_dict())
    else:
        print_report(report)
    if args.json not in (None, "-"):
        _write(Path(args.json), json.dumps(report.as_dict(), ensure_ascii=False, indent=1) + "\n")
    return 1 if report.stops else 0


def _inspect(recipe: Recipe, args: argparse.Namespace) -> int:
    from vlmkit.cli.console import quiet_loading
    from vlmkit.cli.data_rows import print_shown
    from vlmkit.data_check.inspect import show
    from vlmkit.data_check.page import page

    quiet_loading()
    notes: list[str] = []
    shown = show(recipe, args.n, args.stage, args.id, args.fetch, notes)
    if args.html is not None:
        _write(Path(args.html), page(recipe.name, shown))
        sys.stdout.write(f"{args.html}: {sum(len(stage.samples) for stage in shown)} samples\n")
    else:
        print_shown(shown)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    return 1 if any(sample.error for stage in shown for sample in stage.samples) else 0


def _write(path: Path, text: str) -> None:
    """Write a file by renaming a finished one into place."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _count(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
