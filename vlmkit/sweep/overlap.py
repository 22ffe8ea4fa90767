"""Tuning must not choose by what the table is about: data sets are compared question by question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vlmkit.assemble import build_data
from vlmkit.data.sample import Sample
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.recipe import Block
from vlmkit.share.keys import digest, image_facts


def refuse_overlaps(pairs: Iterable[tuple[Block, Block]]) -> None:
    """Compare the data that tuning chooses by with those of the final evaluation.

    Args:
        pairs: Of each candidate, the one and the other.

    Raises:
        UsageError: They have a question about the same images in common, or one cannot be read here.
    """
    distinct = {(tried.model_dump_json(), final.model_dump_json()): (tried, final) for tried, final in pairs}
    known: dict[str, frozenset[str]] = {}
    for names, blocks in distinct.items():
        for name, block in zip(names, blocks, strict=True):
            if name not in known:
                known[name] = _questions(block)
        tried, final = (known[name] for name in names)
        if tried & final:
            raise UsageError(
                f"--tune would choose by the data of the final evaluation ({blocks[1]!r}): "
                f"{len(tried & final)} of its {len(final)} questions are in {blocks[0]!r}; "
                "name validation data that have none of them, e.g. --tune-set evaluate.data.split=val"
            )


def _questions(data: Block) -> frozenset[str]:
    try:
        return frozenset(question for sample in build_data(data) for question in _asked(sample))
    except VlmkitError as error:
        raise UsageError(
            f"test data among those of --tune cannot be looked for where {data!r} cannot be read ({error}); "
            "bring the data here"
        ) from None


def _asked(sample: Sample) -> Iterator[str]:
    """Each question with its images; a sample's name may be another one in another split."""
    images = [image_facts(source) for source in sample.images]
    for conversation in sample.conversations:
        for message in conversation:
            if message.role == "user":
                yield digest({"images": images, "question": message.texts})
