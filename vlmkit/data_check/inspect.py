"""Samples as the model sees them: tokens with their weights, places of images, branches of packed rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from PIL import Image

from vlmkit.budget import SizedImage
from vlmkit.data.collate import fitted, sample_rows
from vlmkit.data.pack import PackedRow
from vlmkit.data.sample import Sample, read_row
from vlmkit.data_check.subject import Subject, chosen, make_subjects
from vlmkit.data_check.texts import token_texts
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.recipe import Recipe


@dataclass(frozen=True)
class ShownToken:
    """A token.

    Attributes:
        id: In the vocabulary.
        text: What it adds to the text; empty where only the next one completes a character.
        position: In its own conversation.
        weight: Of its loss; 0 = not supervised.
    """

    id: int
    text: str
    position: int
    weight: float


@dataclass(frozen=True)
class Run:
    """Tokens of a row that follow each other and are of one kind.

    Attributes:
        branch: 0 for what all conversations of the row share, k for the k-th one's own.
        image: Which image of the sample it is, from 0; None for text.
        tokens: Its tokens; of an image the text of each is empty.
    """

    branch: int
    image: int | None
    tokens: tuple[ShownToken, ...]

    @property
    def weight(self) -> float:
        """Of each of its tokens."""
        return self.tokens[0].weight


@dataclass(frozen=True)
class ShownImage:
    """An image.

    Attributes:
        picture: RGB.
        sized: Width, height, and the level of the layout that keeps the token budget.
        tokens: In the sequence.
        specs: Of the encoders.
    """

    picture: Image.Image
    sized: SizedImage
    tokens: int
    specs: Sequence[VisionSpec]

    @property
    def summary(self) -> str:
        """Size, views of the first encoder, tokens."""
        width, height, level = self.sized
        views = self.specs[0].views((width, height), level)
        grids = " + ".join(
            f"{n} x {rows}x{cols}" if n > 1 else f"{rows}x{cols}"
            for (rows, cols), n in (
                (grid, len(list(same))) for grid, same in groupby((v.rows, v.cols) for v in views)
            )
        )
        smaller = f", made smaller {level} times" if level else ""
        return f"{width} x {height} px, patches {grids}{smaller}, {self.tokens} tokens"


@dataclass(frozen=True)
class ShownSample:
    """A sample.

    Attributes:
        id: Of the sample; of a row that cannot be read, what `row_name` says.
        source: Of a mixture, or the format.
        images: Opened.
        rows: Runs of each row; none where the objective needs no text.
        captions: For the contrastive objective.
        error: What training would stop with; empty where it would not.
    """

    id: str
    source: str
    images: list[ShownImage] = field(default_factory=list)
    rows: list[list[Run]] = field(default_factory=list)
    captions: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class ShownStage:
    """A stage.

    Attributes:
        name: Of the stage, or `evaluate`.
        about: Format, packing and longest row, in words.
        samples: In order.
    """

    name: str
    about: str
    samples: list[ShownSample]


def show(
    recipe: Recipe,
    count: int,
    stage: str | None = None,
    sample_id: str | None = None,
    fetch: bool = False,
    notes: list[str] | None = None,
) -> list[ShownStage]:
    """Samples of a recipe's stages, made into rows by the code that training uses.

    Args:
        recipe: Whose data.
        count: Samples a stage, evenly spaced over its data.
        stage: Only this one; None for all.
        sample_id: Only the sample of this id (`row 7` for a row without one), in the stages that have it.
        fetch: Download what is small: the tokenizer and config.json.
        notes: What is not known is added, in words.

    Raises:
        UsageError: There is no such stage or sample.
        VlmkitError: The data of a stage cannot be opened, or what tokens need is not on this machine.
    """
    subjects = make_subjects(recipe, None, fetch, notes if notes is not None else [])
    if stage is not None:
        subjects = [chosen(subjects, stage)]
    shown: list[ShownStage] = []
    for subject in subjects:
        if subject.data.closed:
            raise VlmkitError(f"stage {subject.name!r}: {subject.data.closed}")
        numbers = _spaced(subject, count) if sample_id is None else _find(subject, sample_id)
        samples = [_sample(subject, number) for number in numbers]
        if samples:
            shown.append(ShownStage(subject.name, _about(subject), samples))
    if not shown:
        raise UsageError(f"no sample has the id {sample_id!r}; data check --json lists ids with problems")
    return shown


def _spaced(subject: Subject, count: int) -> list[int]:
    total = len(subject.data.samples)
    return [i * total // min(count, total) for i in range(min(count, total))]


def _find(subject: Subject, sample_id: str) -> list[int]:
    samples = subject.data.samples
    for number in range(len(samples)):
        if read_row(samples, number).name == sample_id:
            return [number]
    return []


def _about(subject: Subject) -> str:
    data, rules = subject.data, subject.rules
    about = f"{data.block.type}, {len(data.samples):,} samples"
    if rules is None:
        return f"{about}, captions only"
    longest = f", max_length {rules.max_length:,}" if rules.max_length else ""
    together = f", pack_length {rules.pack_length:,} (shown apart)" if rules.pack_length else ""
    return f"{about}, pack {rules.pack}{together}{longest}"


def _sample(subject: Subject, number: int) -> ShownSample:
    source = subject.data.source(number)
    row = read_row(subject.data.samples, number)
    sample = row.sample
    if sample is None:
        return ShownSample(row.name, source, error=str(row.error))
    shown = ShownSample(sample.id, source, captions=sample.captions if subject.captions else ())
    try:
        _fill(shown, sample, subject)
    except VlmkitError as problem:
        return ShownSample(shown.id, source, shown.images, [], shown.captions, str(problem))
    return shown


def _fill(shown: ShownSample, sample: Sample, subject: Subject) -> None:
    pictures = sample.open_images()
    processor = subject.processor
    sizes = fitted(sample.id, [picture.size for picture in pictures], processor.fit)
    for picture, size in zip(pictures, sizes, strict=True):
        shown.images.append(ShownImage(picture, size, processor.count_fitted(size), processor.specs))
    if subject.rules is None:
        return
    tokenizer, image_id = subject.rules.tokenizer, subject.rules.image_token_id
    for row in sample_rows(sample, sizes, subject.rules):
        texts = token_texts(row.ids, tokenizer, image_id)
        shown.rows.append(list(_runs(row, texts, image_id, [image.tokens for image in shown.images])))


def _runs(row: PackedRow, texts: Sequence[str], image_id: int, counts: Sequence[int]) -> Iterator[Run]:
    """A row cut where the branch, the weight, or the image changes."""
    owners = iter([i for i, count in enumerate(counts) for _ in range(count)])
    images = [next(owners) if token == image_id else None for token in row.ids]
    keys = zip(row.branches, images, row.weights)
    for (branch, image, _), group in groupby(enumerate(keys), key=lambda item: item[1]):
        places = [place for place, _ in group]
        tokens = [ShownToken(row.ids[i], texts[i], row.positions[i], row.weights[i]) for i in places]
        yield Run(branch, image, tuple(tokens))
