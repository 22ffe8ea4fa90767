"""`check_data`: every row read, every image opened once, every row of tokens made; nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmkit.data.sample import read_row
from vlmkit.data_check.findings import Findings, Problem
from vlmkit.data_check.images import Images, look_at_images
from vlmkit.data_check.parallel import Progress, in_chunks
from vlmkit.data_check.rows import CheckRows
from vlmkit.data_check.subject import DataSet, Subject, make_subjects
from vlmkit.recipe import Recipe

DUPLICATE = "image_duplicate"
SAME_ID = "id_duplicate"


@dataclass
class StageFindings:
    """A stage.

    Attributes:
        name: Of the stage, or `evaluate`.
        data: Type of its data block.
        max_length: Longest row in tokens that is allowed; None for any.
        pack: How rows are packed; None for objectives without text.
        pack_length: Most tokens of rows that are laid together; None where they are not.
        captions: Whether an objective reads captions.
        skips: Whether training leaves out what cannot be used, and goes on.
        refused: Why training refuses its data as a whole, e.g. a missing file; empty where it does not.
        sources: By name.
    """

    name: str
    data: str
    max_length: int | None
    pack: str | None
    pack_length: int | None
    captions: bool
    skips: bool
    refused: str
    sources: dict[str, Findings] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """Number of problems."""
        return bool(self.refused) + sum(source.found for source in self.sources.values())

    @property
    def stops(self) -> int:
        """Number of problems that training would stop at."""
        return bool(self.refused) if self.skips else self.found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        head = {name: getattr(self, name) for name in ("name", "data", "pack", "pack_length", "max_length")}
        sources = {name: source.as_dict() for name, source in self.sources.items()}
        policy = {"on_bad_sample": "skip" if self.skips else "error"}
        refused = self.refused or None
        return {**head, **policy, "refused": refused, "problems": self.found, "sources": sources}


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        recipe: Its name.
        stages: In order; the evaluation is the last.
        images: Distinct images that were opened.
        limit: How many samples of each source were looked at; None for all.
        seconds: How long it took.
        notes: What is not known, in words.
    """

    recipe: str
    stages: list[StageFindings]
    images: int
    limit: int | None
    seconds: float
    notes: list[str]

    @property
    def found(self) -> int:
        """Number of problems; 0 where a training would meet none."""
        return sum(stage.found for stage in self.stages)

    @property
    def stops(self) -> int:
        """Number of problems that training would stop at: all but those that stages skip."""
        return sum(stage.stops for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the ids of all samples that have a problem."""
        return {
            "recipe": self.recipe,
            "clean": not self.found,
            "problems": self.found,
            "stops": self.stops,
            "limit": self.limit,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "stages": [stage.as_dict() for stage in self.stages],
            "notes": self.notes,
        }


def check_data(
    recipe: Recipe, progress: Progress, workers: int = 0, limit: int | None = None, fetch: bool = False
) -> Report:
    """Look at all data of a recipe as its stages would.

    Each row is read, each image opened once, and each row of tokens made by the code that training uses. What
    training would refuse or skip is a problem; images with the same content, and rows with the same id, are a
    note. Nothing is repaired, cut off, left out or replaced.

    Args:
        recipe: Whose data.
        progress: Called with what is done, how many, of how many.
        workers: Processes; 0 works in this one.
        limit: Look at the first so many samples of each source only.
        fetch: Download what is small: the tokenizer and config.json.

    Raises:
        VlmkitError: The tokenizer or shapes are not on this machine, and `fetch` is not set.
    """
    began, notes = time.perf_counter(), list[str]()
    subjects = make_subjects(recipe, limit, fetch, notes)
    data = list({id(subject.data): subject.data for subject in subjects}.values())
    images = look_at_images(data, workers, progress)
    stages = [_stage(subject, data, images, workers, progress) for subject in subjects]
    for image, twin in images.twins():
        _note_twin(stages, subjects, images, image, twin)
    for own, pairs in zip(data, images.same_ids, strict=True):
        _note_same_ids(stages, subjects, own, pairs)
    return Report(recipe.name, stages, len(images.use_N), limit, time.perf_counter() - began, notes)


def _stage(
    subject: Subject, data: Sequence[DataSet], images: Images, workers: int, progress: Progress
) -> StageFindings:
    rules, own = subject.rules, subject.data
    longest, pack, room = (None, None, None)
    if rules is not None:
        longest, pack, room = rules.max_length, rules.pack, rules.pack_length
    found = StageFindings(
        subject.name, own.block.type, longest, pack, room, subject.captions, subject.skips, own.closed
    )
    work = CheckRows(subject, next(i for i, other in enumerate(data) if other is own), images)
    positions = range(len(own.numbers))
    what = f"tokens of {subject.name}"
    for parts in in_chunks(work, positions, workers, lambda n: progress(what, n, len(positions))):
        for source, part in parts.items():
            part.into(found.sources.setdefault(source, Findings()))
    if subject.captions and not found.refused and not any(s.captions for s in found.sources.values()):
        found.refused = "no sample has an image and a caption, which its objective needs"
    elif subject.skips and found.sources and not any(source.rows for source in found.sources.values()):
        found.refused = "none of its samples can be used"
    return found


def _note_twin(
    stages: Sequence[StageFindings], subjects: Sequence[Subject], images: Images, image: int, twin: int
) -> None:
    """Note an image that has the content of another, in every stage that reads it."""
    use, other = images.use(image), images.use(twin)
    own = images.data[use.data]
    name = own.samples[use.number].id
    same = images.data[other.data].samples[other.number].id
    message = f"image {use.place + 1} has the same content as image {other.place + 1} of sample {same!r}"
    for stage, subject in zip(stages, subjects, strict=True):
        if subject.data is own:
            stage.sources[own.source(use.number)].note(Problem(DUPLICATE, name, message))


def _note_same_ids(
    stages: Sequence[StageFindings],
    subjects: Sequence[Subject],
    data: DataSet,
    pairs: Sequence[tuple[int, int]],
) -> None:
    """Note rows with the id of an earlier one, in every stage that reads them: training tells them apart."""
    for number, earlier in pairs:
        name = read_row(data.samples, number).name
        message = f"{data.row(number)} has the id {name!r} of {data.row(earlier)}"
        for stage, subject in zip(stages, subjects, strict=True):
            if subject.data is data:
                stage.sources[data.source(number)].note(Problem(SAME_ID, name, message))
