"""Answer a question from an index: search, ask about every hit on its own, aggregate, cite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vlmkit_retrieval.aggregate import aggregate
from vlmkit_retrieval.encoders import Encoder
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.images import ImageError, decode_image, read_file, sha256
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.types import Answer, Answerer, Citation, Hit
from vlmkit_retrieval.where import Match, Not

if TYPE_CHECKING:
    from vlmkit_retrieval.index import Index

# Pages and texts are no image files; an index of an older vlmkit has images alone, and says no kind.
_IMAGES = Not(Match("kind", ("page", "text")))


def answer_question(
    index: Index,
    question: str,
    embedder: Encoder | Sequence[Encoder],
    answerer: Answerer,
    *,
    k: int = 8,
    rule: str = "auto",
    options: SearchOptions | None = None,
) -> Answer:
    """Answer from the `k` images nearest to the question.

    Every one of them is asked on its own and becomes a citation, also those that speak against the answer.
    Images further away are not looked at: "no" means "not in the k nearest".

    Args:
        index: An open index.
        question: A question in words; also what is searched for.
        embedder: An encoder that filled the index, or several of any kind, whose lists are fused; those of
            images without a text tower, and of patches, are not asked.
        answerer: The model that looks at the images.
        k: How many images to ask about.
        rule: How single answers become one: `auto`, `any`, `all`, `majority` (see `aggregate`).
        options: Of the search: weights, near-duplicates, diversity.

    Raises:
        RetrievalError: An empty index, no image that is found, an encoder that cannot be used, or an image
            that is gone or has changed since the last sync: the evidence would not be what was found.
    """
    hits = index.search(text=question, embedder=embedder, k=k, where=_IMAGES, options=options)
    if not hits:
        raise _nothing_found(index)
    images = [_evidence(hit, index) for hit in hits]
    answers = answerer.ask_each(images, question)
    if len(answers) != len(hits):
        raise RetrievalError(
            f"the model gave {len(answers)} answers about {len(hits)} images; fix its ask_each"
        )
    verdict = aggregate(answers, question, rule)
    cited = zip(hits, answers, verdict.supports, strict=True)
    citations = tuple(
        Citation(n, hit, said, supports) for n, (hit, said, supports) in enumerate(cited, start=1)
    )
    return Answer(verdict.text, citations, verdict.rule)


def _nothing_found(index: Index) -> RetrievalError:
    held = index.engine.count()
    if not held:
        return RetrievalError(
            f"index {index.path} has no items; fill it with: vlmkit index sync {index.path} PATH"
        )
    return RetrievalError(
        f"index {index.path} holds {held:,} items, and none of them is an image that the question finds; ask "
        "by an encoder of images with a text tower, too, or sync images"
    )


def _evidence(hit: Hit, index: Index) -> Image.Image:
    """The very image that was indexed."""
    path, advice = hit.payload["path"], f"bring the index up to date: vlmkit index sync {index.path} PATH"
    try:
        data = read_file(Path(path))
        if sha256(data) != hit.payload["sha256"]:
            raise ImageError("it has changed since it was indexed")
        return decode_image(data)
    except ImageError as error:
        raise RetrievalError(f"{path}: {error}; {advice}") from error
