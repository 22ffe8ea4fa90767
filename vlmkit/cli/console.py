"""What the command line draws: tables, progress bars, JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from vlmkit.train.run import TrainedRun
    from vlmkit.train.stage import PartRow


def quiet_loading() -> None:
    """No bars for reading local weights, no hints on optional kernels; downloads keep their bars."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    disable_progress_bar()
    enable_progress_bars()


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(dict(content), ensure_ascii=False) + "\n")


def shown(path: str) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """Names with what they are."""
    table = Table(title, "what it is", box=None)
    for name, summary in rows.items():
        table.add_row(name, summary)
    Console().print(table)


def print_parts(title: str, rows: Sequence[PartRow], console: Console | None = None) -> None:
    """Which parts train, with how many parameters, at which rate."""
    table = Table("part", "parameters", "trainable", "lr", "", title=title, title_justify="left", box=None)
    for row in rows:
        rate = f"{row.lr:g}" if row.lr is not None else "-"
        table.add_row(row.part, f"{row.parameters:,}", f"{row.trainable:,}", rate, row.note)
    (console or Console()).print(table)


def bars(console: Console, *, time_left: bool = True) -> Progress:
    """Progress bars with a free text at the end, and the time left unless the text says it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        *([TimeRemainingColumn()] if time_left else []),
        console=console,
    )


def _more(values: Mapping[str, Any]) -> str:
    """Figures of a step that not every machine and stage has."""
    shares = {"padding": values.get("padding"), "MFU": values["mfu"]}
    told = [f"  {name} {share:.0%}" for name, share in shares.items() if share is not None]
    memory = values["peak_bytes"]
    return "".join(told) + (f"  {memory / 1e9:.1f} GB" if memory else "")


class TrainConsole:
    """Draws training on stderr: a table a stage, and a bar with loss, rate, tokens/s and time left."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = bars(self.console)
        self.tasks: dict[str, TaskID] = {}
        self.current = ""
        self.rate = 0.0
        quiet_loading()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, name: str, rows: Sequence[PartRow], note: str) -> None:
        """See `Reporter.stage`."""
        print_parts(f"stage {name} in {note}", rows, self.console)

    def begin(self, name: str, start: int, steps: int) -> None:
        """See `Reporter.begin`."""
        self.current, self.rate = name, 0.0
        self.tasks[name] = self.progress.add_task(name, total=steps, completed=start, values="")

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """See `Reporter.step`."""
        unit = "tokens" if values["tokens"] else "images"
        speed = values[f"{unit}_per_second"]
        self.rate = speed if not self.rate else 0.9 * self.rate + 0.1 * speed
        text = f"loss {values['loss']:.4f}  lr x{values['lr']:.2f}  {self.rate:,.0f} {unit}/s{_more(values)}"
        task = self.tasks[self.current]
        self.progress.update(task, completed=step, values=text)
        total = int(self.progress.tasks[task].total or 1)
        if not self.console.is_terminal and step % max(1, total // 10) == 0:
            # A log file has no bar that moves; ten lines a stage say the same.
            self.console.print(f"{self.current} {step}/{total}  {text}", highlight=False)

    def end(self) -> None:
        """See `Reporter.end`."""

    def working(self, what: str, done: int, total: int) -> None:
        """A bar for other work."""
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total, values="")
        self.progress.update(self.tasks[what], completed=done)

    def note(self, text: str) -> None:
        """See `Reporter.note`."""
        self.console.print(text, highlight=False, markup=False)

    def summary(self, run: TrainedRun) -> None:
        """What was made, in plain words."""
        self.progress.stop()
        self.console.print(f"The model is in {run.path}, with its recipe, metrics.jsonl and curves.png.")
        if run.report is not None:
            self._report(run.report)

    def _report(self, report: Mapping[str, Any]) -> None:
        title = f"{report['questions']:,} questions, {report['images']:,} images: answered exactly"
        table = Table("", *report["exact_match"], title=title, title_justify="left", box=None)
        for name in ("exact_match", "blind"):
            if name in report:
                table.add_row(name.replace("_", " "), *[f"{v:.2%}" for v in report[name].values()])
        self.console.print(table)
