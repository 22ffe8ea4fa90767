"""Which lists a query asks for: one for each space and part of the query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search.asked import AskedSpace
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.types import Terms, Vector, Vectors

# From a space's name, a text's and an image's vector to one between them.
Between = Callable[[str, Vectors, Vectors], Vectors]


@dataclass(frozen=True)
class PlannedList:
    """A list to ask for.

    Attributes:
        name: `SPACE:PART`, where PART is `text`, `image` or `both`.
        space: Where to search.
        query: The vector to search for.
        weight: Above 0.
        pooled: See `AskedSpace.pooled`.
    """

    name: str
    space: str
    query: Vector
    weight: float = 1.0
    pooled: str | None = None


def plan(
    spaces: Sequence[AskedSpace],
    text: str | None,
    image: Image.Image | None,
    options: SearchOptions,
    between: Between,
) -> list[PlannedList]:
    """The lists, in the order of the spaces; nothing is embedded for a list of weight 0.

    Args:
        spaces: Those that can be asked.
        text: Not blank.
        image: Upright, RGB.
        options: Weights, and what becomes of both.
        between: Makes one vector of both.

    Raises:
        RetrievalUsageError: No query, a part of it that no space takes, a weight for a list that is not
            there, or no list that weighs anything.
    """
    _check_query(spaces, text, image)
    names = list(_names(spaces, text is not None, image is not None, options))
    weights = weights_of([name for name, _, _ in names], options.weights)
    lists = [
        PlannedList(name, space.name, _query(space, part, text, image, between), weights[name], space.pooled)
        for name, space, part in names
        if weights[name] > 0
    ]
    if not lists:
        raise RetrievalUsageError(
            f"every list has weight 0 ({', '.join(weights)}); give one of them a weight above 0"
        )
    return [own for own in lists if not (isinstance(own.query, Terms) and not len(own.query.indices))]


def list_names(spaces: Sequence[AskedSpace], text: bool, image: bool, options: SearchOptions) -> list[str]:
    """The lists that a query with these parts asks for, `SPACE:PART` each, in the order of the spaces."""
    return [name for name, _, _ in _names(spaces, text, image, options)]


def weights_of(names: Sequence[str], stated: Mapping[str, float]) -> dict[str, float]:
    """What each list weighs: what is stated for it, else for its space, else 1.

    Raises:
        RetrievalUsageError: A weight is stated for something else.
    """
    spaces = [name.rpartition(":")[0] for name in names]
    wrong = [name for name in stated if name not in names and name not in spaces]
    if wrong:
        possible = ", ".join(dict.fromkeys([*names, *spaces]))
        raise RetrievalUsageError(f"a weight is set for {wrong[0]!r}; lists of this query: {possible}")
    return {
        name: float(stated.get(name, stated.get(space, 1.0)))
        for name, space in zip(names, spaces, strict=True)
    }


def _check_query(spaces: Sequence[AskedSpace], text: str | None, image: Image.Image | None) -> None:
    if text is not None and not text.strip():
        raise RetrievalUsageError("the query text is empty; describe what to search for")
    if text is None and image is None:
        raise RetrievalUsageError("search needs a text, an image, or both")
    able = {"text": [s.name for s in spaces if s.text], "image": [s.name for s in spaces if s.image]}
    given = {"text": text is not None, "image": image is not None}
    for part, other in (("text", "image"), ("image", "text")):
        if given[part] and not able[part]:
            raise RetrievalUsageError(
                f"no space that is asked takes {part} queries (asked by {other}: "
                f"{', '.join(able[other]) or 'none'}); ask one more space, or search by {other} alone"
            )


def _names(
    spaces: Sequence[AskedSpace], text: bool, image: bool, options: SearchOptions
) -> Iterator[tuple[str, AskedSpace, str]]:
    for space in spaces:
        parts = ["text"] * (text and space.text is not None) + ["image"] * (image and space.image is not None)
        # A space of patches has no one vector to move, so there both parts have their own list.
        if len(parts) == 2 and options.compose != "lists" and space.pooled is None:
            parts = ["both"]
        for part in parts:
            yield f"{space.name}:{part}", space, part


def _query(
    space: AskedSpace, part: str, text: str | None, image: Image.Image | None, between: Between
) -> Vector:
    from_text = space.text(text) if part != "image" and space.text and text is not None else None
    from_image = space.image(image) if part != "text" and space.image and image is not None else None
    if isinstance(from_text, np.ndarray) and isinstance(from_image, np.ndarray):
        return between(space.name, from_text, from_image)
    query = from_text if from_text is not None else from_image
    assert query is not None  # `_names` gave this part
    return query
