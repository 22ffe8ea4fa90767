"""What `vlmkit data check` prints: a table of sources, the lengths as bars, each kind of problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from vlmkit.data.problems import PROBLEMS
from vlmkit.data_check.check import DUPLICATE, SAME_ID, Report, StageFindings
from vlmkit.data_check.findings import Listed, histogram, quantile
from vlmkit.data_check.subject import EVALUATE

BAR = 40
KINDS = {
    **PROBLEMS,
    DUPLICATE: "images with the content of another",
    SAME_ID: "rows with the id of an earlier one",
}


def print_report(report: Report) -> None:
    """Write a report to stdout."""
    console = Console()
    for stage in report.stages:
        _stage(stage, console)
    for note in report.notes:
        _say(console, f"note: {note}")
    looked = f"the first {report.limit:,} samples of each source" if report.limit else "everything"
    seconds = f"{report.seconds:,.0f} s" if report.seconds >= 1 else f"{report.seconds:.1f} s"
    _say(console, f"looked at {looked}: {report.images:,} images, each opened once, in {seconds}")
    _say(console, f"{report.found:,} problem{'s' * (report.found != 1)} found{_stopping(report)}")


def _stopping(report: Report) -> str:
    """How many of the problems stop training, where it skips some."""
    if report.stops == report.found:
        return ""
    return f"; training stops at {f'{report.stops:,}' if report.stops else 'none'} of them"


def _stage(stage: StageFindings, console: Console) -> None:
    if stage.refused:
        _say(console, f"stage {stage.name}: {stage.refused}", "red")
    if stage.sources:
        console.print(_table(stage))
    lengths: Counter[int] = Counter()
    for source in stage.sources.values():
        lengths.update(source.lengths)
    if lengths:
        _lengths(stage, lengths, console)
    for name, source in stage.sources.items():
        where = f" of {name}" if len(stage.sources) > 1 else ""
        _listed(source.problems, where, "red", console)
        if stage.skips and source.problems:
            _say(console, "training skips these (on_bad_sample: skip)")
        elif "too_long" in source.problems:
            _say(console, "rows are never cut off: training stops at each that is too long")
        _listed(source.notes, where, "yellow", console)
    console.print()


def _table(stage: StageFindings) -> Table:
    title = f"stage {stage.name}" if stage.name != EVALUATE else "evaluation"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("source", overflow="fold")
    texts = ("rows", "tokens", "image", "supervised") if stage.pack else ()
    captions = ("captioned",) if stage.captions else ()
    for column in ("samples", "images", *captions, *texts, "problems"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, own in stage.sources.items():
        counts = [own.samples, own.images] + [own.captions] * len(captions)
        shown = [f"{count:,}" for count in counts]
        if stage.pack:
            shares = (own.image_tokens, own.supervised)
            shown += [f"{own.rows:,}", f"{own.tokens:,}"]
            shown += [f"{share / own.tokens:.1%}" if own.tokens else "-" for share in shares]
        table.add_row(name, *shown, f"[red]{own.found:,}[/red]" if own.found else "0")
    return table


def _lengths(stage: StageFindings, lengths: Counter[int], console: Console) -> None:
    """Bars of the tokens a row."""
    packed = ", packed" if stage.pack == "prefix" else ""
    middle, most = f"{quantile(lengths, 0.5):,}", f"{max(lengths):,}"
    limit = f", max_length {stage.max_length:,}" if stage.max_length else ""
    _say(console, f"tokens a row{packed}: {min(lengths):,} to {most}, median {middle}{limit}")
    bars = histogram(lengths)
    tallest = max(rows for _, _, rows in bars)
    wide = len(f"{bars[-1][1]:,}")
    for start, end, rows in bars:
        bar = "█" * round(BAR * rows / tallest) or ("▏" if rows else "")
        _say(console, f"  {start:>{wide},} - {end:>{wide},}  {bar} {rows:,}")
    if stage.pack_length is not None:
        above = sum(rows for length, rows in lengths.items() if length > stage.pack_length)
        together = f"pack_length {stage.pack_length:,}: training lays rows of a micro-batch together"
        _say(console, f"{together}; {above:,} {'is' if above == 1 else 'are'} longer and stay alone")


def _listed(listed: Mapping[str, Listed], where: str, colour: str, console: Console) -> None:
    for kind, own in sorted(listed.items()):
        _say(console, f"{KINDS[kind]}{where}: {len(own.ids):,}", colour)
        for problem in own.first:
            prefix = "" if problem.id in problem.message else f"{problem.id}: "
            _say(console, f"  {prefix}{problem.message}")
        if len(own.ids) > len(own.first):
            _say(console, f"  ... and {len(own.ids) - len(own.first):,} more; --json FILE has all ids")


def _say(console: Console, text: str, colour: str | None = None) -> None:
    console.print(text, style=colour, highlight=False, markup=False, soft_wrap=True)
