"""Measure an index against judgements: recall, MRR, nDCG, MAP with intervals, latency, size."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.cli import asking
from vlmkit.cli.ask import positive
from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit_retrieval.eval import Difference, Evaluation, Measured, Names, Task
    from vlmkit_retrieval.search import SearchOptions


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit eval`."""
    parser.add_argument("index", metavar="INDEX", help="the index's directory")
    parser.add_argument("--qrels", required=True, metavar="FILE", help="judgements, of BEIR or of TREC")
    parser.add_argument(
        "--queries", metavar="FILE", help="JSON lines with _id, text, image (queries.jsonl near the qrels)"
    )
    parser.add_argument(
        "--corpus", metavar="FILE", help="JSON lines that say which image an id of the qrels is"
    )
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="FOLDER",
        help="where paths in the qrels begin (the qrels' folder, and what was synced); may be repeated",
    )
    asking.arguments(parser)
    asking.compose_argument(parser)
    parser.add_argument(
        "-k", "--k", type=positive, default=10, metavar="N", help="the k of every metric (10)"
    )
    parser.add_argument(
        "--compare",
        metavar="RUNFILE|INDEX2",
        help="a run in TREC's format, or an index (all its lists)",
    )
    parser.add_argument("--save-run", metavar="FILE", help="write what was found, in TREC's format")
    parser.add_argument("--json", metavar="FILE", help="write all figures; - for stdout instead of the table")


def run(args: argparse.Namespace) -> int:
    """Search for every query, measure, print."""
    from vlmkit.cli.console import print_json
    from vlmkit.cli.eval_report import print_report
    from vlmkit_retrieval.eval import differences, load_task, write_run
    from vlmkit_retrieval.eval.files import write_lines

    _check_index(Path(args.index))
    _check_targets(args)
    task = load_task(args.qrels, args.queries, args.corpus)
    found, names = _evaluate(args.index, args.encoder, asking.options(args), task, args)
    other = _other(task, names, args) if args.compare is not None else None
    between = differences(found, other) if other is not None else {}
    if args.save_run is not None:
        write_run(args.save_run, found.run, "vlmkit")
    report = {
        **_as_dict(found, other, between),
        "qrels": args.qrels,
        "nothing_relevant": task.nothing_relevant,
    }
    if args.json == "-":
        print_json(report)
        return 0
    if args.json is not None:
        write_lines(args.json, [json.dumps(report, ensure_ascii=False, indent=1)])
    print_report(found, task, other, between)
    return 0


def _check_index(index: Path) -> None:
    """A run of a model is a directory too; measuring one is another thing."""
    from vlmkit.checkpoint import MANIFEST as RUN_MANIFEST
    from vlmkit_retrieval.manifest import MANIFEST

    is_model = any((index / name).is_file() for name in (RUN_MANIFEST, "config.json"))
    if is_model and not (index / MANIFEST).exists():
        raise UsageError(
            f"{index} is a model and not an index (it has no {MANIFEST}); fill an index with its encoder and "
            f"measure that: vlmkit index sync INDEX PATH --encoder {index}"
        )


def _check_targets(args: argparse.Namespace) -> None:
    """Refuse before the work what could not be written after it."""
    for target in (args.save_run, args.json):
        if target not in (None, "-") and not Path(target).absolute().parent.is_dir():
            raise UsageError(f"the folder of {target} does not exist; make it, or give another file")


def _evaluate(
    path: str,
    encoders: Sequence[str] | None,
    options: SearchOptions | None,
    task: Task,
    args: argparse.Namespace,
) -> tuple[Evaluation, Names]:
    from rich.console import Console

    from vlmkit.cli.console import bars
    from vlmkit.cli.search_encoders import to_search_with
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.eval import evaluate, item_names

    with Index.open(path) as index, bars(Console(stderr=True)) as progress:
        asked = to_search_with(
            index,
            encoders,
            text=any(query.text is not None for query in task.queries),
            image=any(query.image is not None for query in task.queries),
        )
        bar = progress.add_task("search", total=len(task.queries), values="")
        found = evaluate(
            index,
            task,
            asked,
            args.k,
            args.root,
            lambda done, total: progress.update(bar, completed=done, total=total),
            options,
        )
        return found, item_names(index, task, args.root)


def _other(task: Task, names: Names, args: argparse.Namespace) -> Measured:
    from vlmkit_retrieval.eval import measure_run

    if Path(args.compare).is_dir():
        _check_index(Path(args.compare))
        return _evaluate(args.compare, None, None, task, args)[0]
    return measure_run(args.compare, task, names, args.k)


def _as_dict(found: Evaluation, other: Measured | None, between: Mapping[str, Difference]) -> dict[str, Any]:
    """JSON values."""
    report = found.as_dict()
    if other is not None:
        report["compare"] = {
            "with": other.name,
            "metrics": {name: asdict(estimate) for name, estimate in other.estimates.items()},
            "difference": {name: asdict(difference) for name, difference in between.items()},
        }
    return report
