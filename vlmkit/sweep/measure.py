"""The figures of a run, read from what it wrote: report, metrics, weights, and its processor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from safetensors import safe_open

from vlmkit import register_auto_classes
from vlmkit.assemble import build_data
from vlmkit.checkpoint import read_run
from vlmkit.data.sample import Sample, readable
from vlmkit.errors import VlmkitError
from vlmkit.processor import Processor
from vlmkit.recipe import Block, Recipe
from vlmkit.splice import count_given
from vlmkit.sweep.grid import Job, Place
from vlmkit.sweep.process import LOST, is_finished, read_record
from vlmkit.sweep.values import Values
from vlmkit.train.metrics import read_metrics

# Names of figures; exact match by kind of question has the kind behind it.
EXACT, BLIND, TOKENS, SEEN = "exact match", "blank image", "image tokens", "tokens looked at"
CONNECTOR, ALL_PARTS, SPEED = "connector parameters", "all parameters", "images/s"
MEMORY, SECONDS, FEATURES = "peak memory MB", "training s", "stored features s"
# The first images stand for all.
IMAGES = 32


@dataclass(frozen=True)
class Row:
    """A job and its figures.

    Attributes:
        name: Its folder.
        varied: What distinguishes it.
        tuned: What it was tuned to, or tries.
        seed: Its seed.
        status: How it ended, `waiting` where it was not started.
        error: Why it failed.
        figures: By name; of a run that is not finished, none.
    """

    name: str
    varied: Values
    tuned: Values
    seed: int
    status: str
    error: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it ended without a result, by its own error or by a signal."""
        return self.status in LOST


def measure(place: Place, job: Job) -> Row:
    """The row of a job, whatever has become of it."""
    record = read_record(place, job)
    if not is_finished(place, job):
        status, error = (record.status, record.error) if record else ("waiting", "")
        return Row(job.name, job.varied, job.tuned, job.seed, status, error)
    run = place.run(job)
    # Without, transformers warns that it does not know a vlmkit model.
    register_auto_classes()
    processor = Processor.from_pretrained(run)
    figures = {**_scores(run), **_tokens(processor, job.recipe), **_parameters(run, processor)}
    figures |= _times(run, job.recipe)
    # A sweep that was killed did not wait for the run that it left behind, and knows no memory of it.
    if record is not None:
        figures[MEMORY] = record.peak_bytes / 1e6
    return Row(job.name, job.varied, job.tuned, job.seed, "finished", "", figures)


def _scores(run: Path) -> dict[str, float]:
    """Exact match of all questions and by kind, and of all questions about a blank image."""
    report = read_run(run)["report"] or {}
    exact, blind = report.get("exact_match", {}), report.get("blind", {})
    kinds = {f"{EXACT}, {kind}": share for kind, share in exact.items() if kind != "all"}
    whole = {EXACT: exact["all"]} if exact else {}
    return {**whole, **kinds, **({BLIND: blind["all"]} if blind else {})}


def _tokens(processor: Processor, recipe: Recipe) -> dict[str, float]:
    """Mean over the first images: tokens in the sequence, and tokens that the language model looks at."""
    block = recipe.evaluate.data if recipe.evaluate is not None else recipe.stages[-1].data
    images = [processor.fit([size])[0] for size in _sizes(block.model_dump_json())]
    if not images:
        return {}
    taken = math.fsum(map(processor.count_fitted, images))
    given = (count_given(processor.specs, processor.connector, processor.marks, image) for image in images)
    return {TOKENS: taken / len(images), SEEN: math.fsum(given) / len(images)}


@lru_cache(maxsize=8)
def _sizes(data: str) -> tuple[tuple[int, int], ...]:
    """Width and height of the first images of a data set that open; it is read once for all runs."""
    samples = build_data(Block.model_validate_json(data), check=False)
    return tuple(islice(_opened(samples), IMAGES))


def _opened(samples: Sequence[Sample]) -> Iterator[tuple[int, int]]:
    """Sizes of the images of samples that can be used: the runs that are measured left out the others."""
    for sample in readable(samples):
        try:
            if sample is not None:
                yield from [image.size for image in sample.open_images()]
        except VlmkitError:
            continue


def _parameters(run: Path, processor: Processor) -> dict[str, float]:
    """Numbers in the connector, and in the tensors of the saved model, where tied ones are stored once."""
    total = 0
    for file in sorted(run.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            shapes = (stored.get_slice(name).get_shape() for name in stored.keys())  # noqa: SIM118
            total += sum(map(math.prod, shapes))
    return {CONNECTOR: sum(p.numel() for p in processor.connector.parameters()), ALL_PARTS: total}


def _times(run: Path, recipe: Recipe) -> dict[str, float]:
    """Images a second in the steps of the last stage, and the time of the steps of all stages.

    Features that runs share are not in them: the first run encodes, the next ones read what it has stored.
    """
    rows = read_metrics(run / "metrics.jsonl")
    last = [row for row in rows if row["stage"] == recipe.stages[-1].name]
    spent = math.fsum(row["seconds"] for row in last)
    images = sum(row["images"] for row in last)
    speed = {SPEED: images / spent} if spent else {}
    stored = [row["features_seconds"] for row in rows if "features_seconds" in row]
    features = {FEATURES: math.fsum(stored)} if stored else {}
    return {**speed, SECONDS: math.fsum(row["seconds"] for row in rows), **features}
