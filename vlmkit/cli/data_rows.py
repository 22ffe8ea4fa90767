"""What `vlmkit data inspect` prints: rows with supervised tokens in colour."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from vlmkit.data_check.inspect import Run, ShownSample, ShownStage

SUPERVISED = "bold black on green"
IMAGE = "bold white on blue"


def print_shown(stages: list[ShownStage]) -> None:
    """Write stages to stdout."""
    console = Console()
    legend = Text("legend: ").append("supervised", SUPERVISED).append("  given  ").append("[image]", IMAGE)
    console.print(legend)
    for stage in stages:
        console.rule(f"stage {stage.name}: {stage.about}", align="left")
        for sample in stage.samples:
            _sample(sample, console)


def _sample(sample: ShownSample, console: Console) -> None:
    console.print(Text(f"{sample.id} ", "bold").append(f"({sample.source})", "not bold dim"))
    if sample.error:
        console.print(Text(f"  {sample.error}", "red"), soft_wrap=True)
    for number, image in enumerate(sample.images, 1):
        console.print(Text(f"  image {number}: {image.summary}"), soft_wrap=True)
    for caption in sample.captions:
        console.print(Text(f"  caption: {caption}"), soft_wrap=True)
    for row in sample.rows:
        total = sum(len(run.tokens) for run in row)
        learnt = sum(len(run.tokens) for run in row if run.weight)
        console.print(Text(f"  row of {total} tokens, {learnt} supervised ({learnt / total:.1%})", "dim"))
        for text in lines(row):
            console.print(text, soft_wrap=True)
    console.print()


def lines(row: list[Run]) -> list[Text]:
    """A line for what is shared, and one for each branch of a packed row."""
    found: list[Text] = []
    packed = any(run.branch for run in row)
    for i, run in enumerate(row):
        if not i or run.branch != row[i - 1].branch:
            found.append(Text("    "))
            if packed:
                last = max(token.position for own in row if own.branch == run.branch for token in own.tokens)
                name = f"branch {run.branch}" if run.branch else "shared"
                found[-1].append(f"{name}, positions {run.tokens[0].position}-{last}: ", "dim")
        _run(run, found[-1])
    return found


def _run(run: Run, line: Text) -> None:
    if run.image is not None:
        line.append("\n    " if line.plain.endswith("⏎") else "")
        line.append(f"[image {run.image + 1}: {len(run.tokens)} tokens]", IMAGE)
        return
    text = "".join(token.text for token in run.tokens)
    # The next line is begun where it has something.
    if line.plain.endswith("⏎") and text:
        line.append("\n    ")
    text = text[:-1].replace("\n", "⏎\n    ") + text[-1:].replace("\n", "⏎")
    line.append(text, SUPERVISED if run.weight else None)
    if run.weight not in (0, 1):
        line.append(f"×{run.weight:g}", "dim")
