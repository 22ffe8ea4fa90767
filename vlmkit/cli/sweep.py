"""Train a grid of recipes: one table and one picture of accuracy, tokens, parameters, speed and memory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmkit.sweep.grid import Grid, Job
    from vlmkit.sweep.measure import Row
    from vlmkit.sweep.run import Swept


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit sweep`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, as for train")
    listed = "KEY=V1,V2"
    parser.add_argument(
        "--vary", action="append", default=[], metavar=listed, help="values of the grid; may be given again"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each combination (1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (1)")
    parser.add_argument("--output", metavar="DIR", help="where all is written (sweeps/NAME of the recipe)")
    parser.add_argument(
        "--tune", nargs="+", default=[], metavar=listed, help="values that are tried for each combination"
    )
    parser.add_argument(
        "--tune-set", nargs="+", default=[], metavar="key=value", help="while tuning: name validation data"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and print the grid, train nothing")


def run(args: argparse.Namespace) -> int:
    """Check the whole grid, then train what is not finished."""
    from vlmkit.cli.console import quiet_loading
    from vlmkit.errors import UsageError
    from vlmkit.sweep.grid import make_grid
    from vlmkit.sweep.request import Request
    from vlmkit.sweep.run import sweep
    from vlmkit.sweep.values import read_axes

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: 1 or more are needed")
    vary, tune = read_axes(args.vary, "--vary"), read_axes(args.tune, "--tune")
    request = Request(args.recipe, args.overrides, vary, args.seeds, tune, args.tune_set)
    quiet_loading()
    console = SweepConsole()
    if args.dry_run:
        console.planned(make_grid(request))
        return 0
    folder = Path(args.output or f"sweeps/{request.read().get('name')}")
    swept = sweep(request, folder, args.jobs, console)
    console.summary(swept)
    return 0 if swept.whole else 1


class SweepConsole:
    """Prints the grid and the final table on stdout, and a line for each run that ends on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    def planned(self, grid: Grid) -> None:
        """See `Watcher.planned`."""
        from rich.console import Console
        from rich.table import Table

        from vlmkit.sweep.blocks import resolved_blocks

        jobs = [job for jobs in (*grid.candidates, *grid.runs) for job in jobs]
        table = Table("run", *(f"its {name}" for name in resolved_blocks(jobs[0])), box=None)
        for job in jobs:
            kind = "tuning/" if job.kind == "tuning" else ""
            table.add_row(kind + job.name, *resolved_blocks(job).values())
        Console(soft_wrap=True).print(table, highlight=False)

    def ended(self, job: Job, row: Row, left: int, seconds: float) -> None:
        """See `Watcher.ended`."""
        rest = f"{left} left, about {_duration(seconds)}" if left else "none left"
        kind = "tuning: " if job.kind == "tuning" else ""
        text = f"{kind}{row.name}  {_said(row)}  ({rest})"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def summary(self, swept: Swept) -> None:
        """The table, and where the files are."""
        sys.stdout.write((swept.folder / "table.md").read_text(encoding="utf-8"))
        told = f"{swept.folder} has table.csv, table.md, plot.png and runs/"
        self.console.print(told, highlight=False, soft_wrap=True)


def _said(row: Row) -> str:
    from vlmkit.sweep.measure import BLIND, EXACT, MEMORY, SECONDS, SPEED, TOKENS
    from vlmkit.sweep.tables import number

    if row.status != "finished":
        return f"{row.status} {row.error}".strip()
    names = (EXACT, BLIND, TOKENS, SPEED, MEMORY, SECONDS)
    return ", ".join(f"{name} {number(name, row.figures[name])}" for name in names if name in row.figures)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
