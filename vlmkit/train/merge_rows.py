"""A few rows on which two models can be compared: the recipe's own samples, or made-up ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from PIL import Image

from vlmkit.assemble import build_data
from vlmkit.data.sample import Sample, readable
from vlmkit.errors import VlmkitError
from vlmkit.messages import Query, question
from vlmkit.processor import Processor
from vlmkit.recipe import Recipe

ROWS = 4
# Rows that are looked at until so many can be used.
SEEN = 64
WORDS = 8


def merge_rows(recipe: Recipe, stage: str, processor: Processor) -> tuple[list[Query], str]:
    """Questions to a model, and in words what they are.

    Args:
        recipe: Names the data.
        stage: The stage whose data it is.
        processor: The model's.
    """
    block = next(s.data for s in recipe.stages if s.name == stage)
    try:
        samples = build_data(block, check=False)
        queries = list(islice(_usable(samples, processor), ROWS))
        reason = f"none of the first {SEEN} samples has a question that can be used"
    except VlmkitError as error:
        queries, reason = [], str(error)
    if queries:
        return queries, f"{len(queries)} of the recipe's samples"
    return made_up(processor), f"2 made-up rows, as the recipe's samples are not there: {reason}"


def _usable(samples: Sequence[Sample], processor: Processor) -> Iterator[Query]:
    """Questions of the first samples that have one and can be read."""
    for sample in islice(readable(samples), SEEN):
        if sample is None or not sample.conversations:
            continue
        try:
            query = Query(sample.conversations[0][:1], tuple(sample.open_images()))
            processor.prompts([query.conversation], [query.images])
        except VlmkitError:
            continue
        yield query


def made_up(processor: Processor) -> list[Query]:
    """A text about an image of noise, and one about none, of words that every tokenizer has."""
    tokenizer = processor.tokenizer
    usual = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    usual = [number for number in usual if number != processor.image_token_id]
    text = tokenizer.decode(usual[:: max(1, len(usual) // WORDS)][:WORDS])
    side = processor.specs[0].image_size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return [question([Image.fromarray(pixels)], text), question([], text)]
