"""The figures of a run, read from what it wrote: report, metrics, weights, and its processor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open

from vlmkit import register_auto_classes
from vlmkit.assemble import build_data
from vlmkit.budget import SizedImage
from vlmkit.checkpoint import read_run
from vlmkit.processor import Processor
from vlmkit.recipe import Block, Recipe
from vlmkit.splice import streams
from vlmkit.sweep.grid import Job, Place
from vlmkit.sweep.process import is_finished, read_record
from vlmkit.sweep.values import Values
from vlmkit.train.metrics import read_metrics
from vlmkit_connectors import LayerInjection

# Names of figures; exact match by kind of question has the kind behind it.
EXACT, BLIND, TOKENS, SEEN = "exact match", "blank image", "image tokens", "tokens looked at"
CONNECTOR, ALL_PARTS, SPEED = "connector parameters", "all parameters", "images/s"
MEMORY, SECONDS = "peak memory MB", "training s"
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


def measure(place: Place, job: Job) -> Row:
    """The row of a job, whatever has become of it."""
    record = read_record(place, job)
    if not is_finished(place, job):
        status, error = (record.status, record.error) if record else ("waiting", "")
        return Row(job.name, job.varied, job.tuned, job.seed, status, error)
    run = place.run(job)
    figures = {**_scores(run), **_tokens(run, job.recipe), **_parameters(run), **_times(run, job.recipe)}
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


def _tokens(run: Path, recipe: Recipe) -> dict[str, float]:
    """Mean over the first images: tokens in the sequence, and tokens that the language model looks at."""
    block = recipe.evaluate.data if recipe.evaluate is not None else recipe.stages[-1].data
    # Without, transformers warns that it does not know a vlmkit model.
    register_auto_classes()
    processor = Processor.from_pretrained(run)
    images = [processor.fit([size])[0] for size in _sizes(block.model_dump_json())]
    if not images:
        return {}
    taken = math.fsum(map(processor.count_fitted, images)) / len(images)
    return {TOKENS: taken, SEEN: math.fsum(tokens_seen(processor, image) for image in images) / len(images)}


def tokens_seen(processor: Processor, image: SizedImage) -> int:
    """Image tokens that the language model looks at: in its sequence, or through blocks inside it."""
    total = 0
    for spec, member in streams(processor.specs, processor.connector):
        if not isinstance(member, LayerInjection):
            return processor.count_fitted(image)
        views = spec.features(image[:2], image[2])
        total += sum(member.num_tokens((view.rows, view.cols)) for view in views)
    return total


@lru_cache(maxsize=8)
def _sizes(data: str) -> tuple[tuple[int, int], ...]:
    """Width and height of the first images of a data set, which is read once for all runs."""
    sizes: list[tuple[int, int]] = []
    for sample in build_data(Block.model_validate_json(data)):
        sizes += [image.size for image in sample.open_images()]
        if len(sizes) >= IMAGES:
            break
    return tuple(sizes[:IMAGES])


def _parameters(run: Path) -> dict[str, float]:
    """Numbers in the tensors of the saved model; tied ones are stored, and counted, once."""
    connector = total = 0
    for file in sorted(run.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                size = math.prod(stored.get_slice(name).get_shape())
                total += size
                connector += size * name.startswith("connector.")
    return {CONNECTOR: connector, ALL_PARTS: total}


def _times(run: Path, recipe: Recipe) -> dict[str, float]:
    """Images a second in the steps of the last stage, and the time of the steps of all stages."""
    rows = read_metrics(run / "metrics.jsonl")
    last = [row for row in rows if row["stage"] == recipe.stages[-1].name]
    spent = math.fsum(row["seconds"] for row in last)
    images = sum(row["images"] for row in last)
    speed = {SPEED: images / spent} if spent else {}
    return {**speed, SECONDS: math.fsum(row["seconds"] for row in rows)}
