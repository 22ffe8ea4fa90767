"""A recipe's stages as checks see them: samples, the rules that make rows of them, and no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmkit.assemble import build_data, text_rules
from vlmkit.blueprint import planned_processor
from vlmkit.data.collate import TextRules
from vlmkit.data.formats.mixture import Mixture
from vlmkit.data.sample import Sample, readable
from vlmkit.errors import VlmkitError, unknown_name
from vlmkit.objectives import OBJECTIVES, objective_weights
from vlmkit.processor import Processor
from vlmkit.recipe import Block, Recipe, Stage

EVALUATE = "evaluate"


@dataclass(frozen=True)
class DataSet:
    """The samples of a data block, opened once however many stages name it.

    Attributes:
        block: What names it.
        samples: All of them; none where it cannot be opened.
        numbers: Those that are checked.
        closed: Why it cannot be opened; empty where it can.
    """

    block: Block
    samples: Sequence[Sample]
    numbers: Sequence[int]
    closed: str = ""

    def source(self, number: int) -> str:
        """The name of a sample's source in a mixture; else of the format."""
        if isinstance(self.samples, Mixture):
            return self.samples.shares[self.samples.share_of(number)].name
        return self.block.type

    def row(self, number: int) -> str:
        """Where a sample is: `row N` of its source, counted from 0; in a mixture `SOURCE/row N`."""
        if isinstance(self.samples, Mixture):
            share = self.samples.shares[self.samples.share_of(number)]
            return f"{share.name}/row {number - share.first}"
        return f"row {number}"


@dataclass(frozen=True)
class Subject:
    """A stage.

    Attributes:
        name: Of the stage, or `evaluate`.
        data: What it reads.
        processor: Counts image tokens.
        rules: How conversations become rows; None for objectives without text.
        captions: Whether an objective reads captions.
        skips: Whether a sample that cannot be used is left out, and stops nothing.
    """

    name: str
    data: DataSet
    processor: Processor
    rules: TextRules | None
    captions: bool
    skips: bool = False


def make_subjects(recipe: Recipe, limit: int | None, fetch: bool, notes: list[str]) -> list[Subject]:
    """The stages of a recipe and its evaluation, ready to be checked; opens no image.

    Args:
        recipe: Whose data.
        limit: Look at the first so many samples of each source only.
        fetch: Download what is small: the tokenizer and config.json.
        notes: What is not known is added, in words.

    Raises:
        VlmkitError: The tokenizer or shapes are not on this machine, and `fetch` is not set.
    """
    opened: dict[str, DataSet] = {}
    for block in _blocks(recipe):
        key = block.model_dump_json()
        opened[key] = opened[key] if key in opened else _open(block, limit)
    texts = _texts([opened[stage.data.model_dump_json()] for stage in recipe.stages])
    processor = planned_processor(recipe, texts, notes, fetch)
    subjects = [
        _subject(stage, recipe, opened[stage.data.model_dump_json()], processor) for stage in recipe.stages
    ]
    if recipe.evaluate is not None:
        data = opened[recipe.evaluate.data.model_dump_json()]
        asked = recipe.stages[-1].model_copy(update={"pack": "none", "pack_length": None, "max_length": None})
        subjects.append(
            Subject(EVALUATE, data, processor, text_rules(asked, recipe.model.prompt, processor), False)
        )
    return subjects


def chosen(subjects: Sequence[Subject], name: str) -> Subject:
    """The subject of a stage.

    Raises:
        UsageError: There is none of that name.
    """
    for subject in subjects:
        if subject.name == name:
            return subject
    raise unknown_name("stage", name, [subject.name for subject in subjects])


def _blocks(recipe: Recipe) -> list[Block]:
    evaluated = [recipe.evaluate.data] if recipe.evaluate is not None else []
    return [*(stage.data for stage in recipe.stages), *evaluated]


def _subject(stage: Stage, recipe: Recipe, data: DataSet, processor: Processor) -> Subject:
    needs = [OBJECTIVES[name] for name in objective_weights(stage.objective)]
    rules = text_rules(stage, stage.prompt or recipe.model.prompt, processor)
    wants_text = any(objective.tokens for objective in needs)
    captions = any(objective.captions for objective in needs)
    skips = stage.on_bad_sample == "skip"
    return Subject(stage.name, data, processor, rules if wants_text else None, captions, skips)


def _open(block: Block, limit: int | None) -> DataSet:
    try:
        samples = build_data(block, check=False)
    except VlmkitError as error:
        return DataSet(block, (), (), str(error))
    if limit is None:
        return DataSet(block, samples, range(len(samples)))
    if isinstance(samples, Mixture):
        parts = [range(s.first, s.first + min(s.count, limit)) for s in samples.shares]
        return DataSet(block, samples, [number for part in parts for number in part])
    return DataSet(block, samples, range(min(limit, len(samples))))


def _texts(data: Sequence[DataSet]) -> Iterator[str]:
    """All texts that can be read, for the vocabulary of a language model from scratch."""
    for own in data:
        for sample in readable(own.samples):
            for conversation in sample.conversations if sample else ():
                yield from (text for message in conversation for text in message.texts)
