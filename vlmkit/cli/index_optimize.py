"""Build an approximate index on a copy, show what it finds and costs, and swap it in."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from vlmkit_retrieval.engines.built import Built, Figures, Setting
    from vlmkit_retrieval.optimize import OptimizeReport, SpaceReport


# Of the tables, where the output is no terminal, or a narrow one.
_WIDTH = 100


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit index optimize`."""
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "--hnsw", action="store_true", help="a graph (built, too, where nothing else is named)"
    )
    compressed = parser.add_mutually_exclusive_group()
    compressed.add_argument("--int8", action="store_true", help="compare vectors of 8 bits a number first")
    compressed.add_argument("--turboquant", action="store_true", help="the same with 4 bits")
    parser.add_argument(
        "--space", action="append", metavar="NAME", help="only this vector; give it again for more (all)"
    )
    parser.add_argument(
        "--queries", type=int, default=200, metavar="N", help="stored vectors to ask for (200)"
    )
    parser.add_argument(
        "--min-recall", type=float, default=0.95, metavar="R", help="of the exact ten, to be found (0.95)"
    )
    parser.add_argument("--yes", action="store_true", help="swap it in without asking, if it finds enough")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Exit code 0: the index is optimized; 1: nothing has changed."""
    from vlmkit.cli.console import print_json
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.optimize import Demands, Mode, optimize

    compressed = "int8" if args.int8 else "turboquant" if args.turboquant else ""
    graph = args.hnsw or not compressed
    mode = Mode.parse("+".join(part for part in ("hnsw" * graph, compressed) if part))
    demands = Demands(args.min_recall, args.queries)

    def confirm(report: OptimizeReport) -> bool:
        if not args.json:
            _print(report)
        return bool(args.yes) or _asked()

    with Index.open(args.index) as index:
        report = optimize(index.engine, mode, args.space, demands, confirm, _say)
    if args.json:
        print_json(report.as_dict())
    elif not report.reached:
        _print(report)
    _say(_outcome(args.index, report))
    return 0 if report.swapped else 1


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _asked() -> bool:
    """On a terminal the user decides; elsewhere only `--yes` does."""
    if not sys.stdin.isatty():
        _say("not swapped in: give --yes, or run this in a terminal")
        return False
    sys.stderr.write("swap it in? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _outcome(index: str, report: OptimizeReport) -> str:
    if report.swapped:
        return f"{index} is optimized: searches use it; with exact=True they compare every item, as before"
    if report.reached:
        return f"{index}: nothing has changed"
    short = ", ".join(space.name for space in report.spaces if space.chosen is None)
    return (
        f"{index}: nothing has changed: no setting finds {report.min_recall:g} of the exact neighbours in "
        f"{short}; try another mode, or a lower --min-recall"
    )


def _print(report: OptimizeReport) -> None:
    from rich.console import Console

    console = Console(width=max(Console().width, _WIDTH))
    for space in report.spaces:
        console.print(_table(space))
        if space.chosen is not None:
            line = (
                f"chosen: {told(space.chosen.setting)}; {space.faster:.1f} times less CPU than exact search"
            )
            slow = "" if space.faster > 1 else ": no gain, unless it is the memory"
            console.print(line + slow, highlight=False, markup=False, soft_wrap=True)
    console.print(f"building took {report.build_cpu_seconds:.0f} s of CPU", highlight=False)


def _table(space: SpaceReport) -> Table:
    from rich.table import Table

    title = f"{space.name}: {space.mode} of {space.items:,} items, asked {space.queries} of its own vectors"
    heads = (f"recall@{space.k}", "at least", "CPU ms p50", "p95", "ms p50", "p95", "memory MB", "disk MB")
    table = Table("search", title=title, title_justify="left", box=None)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_row("exact", *_cells(space.exact))
    for trial in space.trials:
        table.add_row(told(trial.setting), *_cells(trial.figures))
    return table


def _cells(own: Figures) -> list[str]:
    times = (own.cpu_p50_ms, own.cpu_p95_ms, own.wall_p50_ms, own.wall_p95_ms)
    memory = "-" if own.memory_bytes is None else f"{own.memory_bytes / 1e6:.0f}"
    return [
        f"{own.recall:.4f}",
        f"{own.recall_low:.4f}",
        *(f"{time:.2f}" for time in times),
        memory,
        f"{own.disk_bytes / 1e6:.0f}",
    ]


def told(setting: Setting) -> str:
    """A setting in words."""
    words = (("ef", setting.ef), ("compared again: k x", setting.oversampling))
    return ", ".join(f"{word} {value:g}" for word, value in words if value is not None)


def built_lines(built: Built) -> list[str]:
    """What `vlmkit index info` says of each space that was optimized."""
    return [
        f"optimized {name}: {own.mode}, {told(own.setting)}; measured on {own.items:,} items ({built.made}): "
        f"recall@{own.k} {own.figures.recall:.4f}, {own.figures.cpu_p50_ms:.2f} ms of CPU "
        f"(exact {own.exact.cpu_p50_ms:.2f})"
        for name, own in built.spaces.items()
    ]
