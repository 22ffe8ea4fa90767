"""What `vlmkit eval` prints: a table of metrics with intervals, a comparison, speed and size, notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vlmkit_retrieval.eval import Difference, Evaluation, Measured, Task

NAMED = 5


def print_report(
    found: Evaluation, task: Task, other: Measured | None, between: Mapping[str, Difference]
) -> None:
    """Write a report to stdout."""
    console = Console()
    _say(console, f"{found.name}: {len(found.scores.queries):,} queries, {found.items:,} items")
    console.print(_table(found))
    if other is not None:
        _say(console, f"against {other.name}")
        console.print(_comparison(found, other, between))
    for line in _lines(found, task):
        _say(console, line)


def _table(found: Evaluation) -> Table:
    table = _columns("mean", "95 % interval")
    for name, own in found.estimates.items():
        table.add_row(name, f"{own.mean:.4f}", f"{own.low:.4f} to {own.high:.4f}")
    return table


def _comparison(found: Evaluation, other: Measured, between: Mapping[str, Difference]) -> Table:
    table = _columns("this", "other", "difference", "95 % interval", "p", "this is")
    for name, own in between.items():
        means = (f"{found.estimates[name].mean:.4f}", f"{other.estimates[name].mean:.4f}")
        verdict = ("better" if own.mean > 0 else "worse") if own.significant else "-"
        interval = f"{own.low:+.4f} to {own.high:+.4f}"
        table.add_row(name, *means, f"{own.mean:+.4f}", interval, f"{own.p:.4f}", verdict)
    return table


def _columns(*names: str) -> Table:
    table = Table("", box=None)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _lines(found: Evaluation, task: Task) -> Iterator[str]:
    """GB and MB are powers of 10."""
    p50, p95 = found.latency["p50_ms"], found.latency["p95_ms"]
    lists = (name if weight == 1 else f"{name} (weight {weight:g})" for name, weight in found.lists.items())
    yield f"lists: {', '.join(lists)}"
    yield f"a query takes {p50:.1f} ms (p50), {p95:.1f} ms (p95), with its encoding"
    where = f"; its points are at {found.points_at}" if found.points_at else ""
    yield f"the index takes {found.disk_bytes / 1e6:.1f} MB on disk{where}"
    if found.exact is None:
        yield "search is exact"
    else:
        recall, fast, slow = (found.exact[name] for name in ("recall", "p50_ms", "exact_p50_ms"))
        yield f"search is approximate: recall {recall:.4f} of exact, {fast:.2f} ms against {slow:.2f} ms"
    if found.lost_items:
        yield f"note: {found.lost_items:,} relevant items of the qrels are not in the index"
    if found.lost_queries:
        yield f"note: nothing relevant to {_named(found.lost_queries)} is in the index; they count as 0"
    if task.nothing_relevant:
        yield f"note: left out, as no item is relevant to them: {_named(task.nothing_relevant)}"


def _named(queries: tuple[str, ...]) -> str:
    more = f" and {len(queries) - NAMED:,} more" if len(queries) > NAMED else ""
    return f"{len(queries):,} queries ({', '.join(queries[:NAMED])}{more})"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
