"""`skipped.jsonl`: every sample that a stage with `on_bad_sample: skip` left out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from accelerate import Accelerator

from vlmkit.data.sample import Skipped
from vlmkit.recipe import Stage
from vlmkit.train.distribute import of_every_process
from vlmkit.train.metrics import MetricsFile, Reporter, read_metrics

# Beside metrics.jsonl.
SKIPPED = "skipped.jsonl"


def write_skipped(
    own: Sequence[Skipped], file: MetricsFile, stage: Stage, step: int, accelerator: Accelerator
) -> int:
    """List what all processes left out of a step; returns how many.

    Args:
        own: What this process left out.
        file: Where to write.
        stage: The stage.
        step: Its step, counted from 1.
        accelerator: The processes.
    """
    skipped = [sample for part in of_every_process(list(own), accelerator) for sample in part]
    for sample in skipped:
        file.write({"stage": stage.name, "step": step, **asdict(sample)})
    return len(skipped)


def tell_skipped(file: MetricsFile, stage: str, reporter: Reporter) -> None:
    """Say at a stage's end how many samples were left out, by kind."""
    if not file.active or not file.path.exists():
        return
    kinds = Counter(row["kind"] for row in read_metrics(file.path) if row["stage"] == stage)
    if kinds:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        reporter.note(f"stage {stage}: {kinds.total()} samples were skipped ({counted}); see {file.path}")
