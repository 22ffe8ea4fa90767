"""BEIR's `queries.jsonl` and `corpus.jsonl`, with images beside texts (its judgements: see `qrels`).

Of each file this is read; other keys (`metadata`) are passed over:

    corpus.jsonl    {"_id": "d1", "title": "...", "text": "...", "image": "images/d1.png"}
    queries.jsonl   {"_id": "q1", "text": "a red triangle", "image": "shapes/q1.png"}

A text, an image, or both must be there. A path is relative to the folder of the file that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit_retrieval.eval.files import Line, json_objects, write_lines


@dataclass(frozen=True)
class Query:
    """What is searched for: a text, an image, or both.

    Attributes:
        id: As in the qrels.
        text: None for an image alone.
        image: Its file; None for a text alone.
    """

    id: str
    text: str | None = None
    image: Path | None = None


@dataclass(frozen=True)
class Document:
    """One item of a corpus.

    Attributes:
        id: As in the qrels.
        text: Empty for an image alone.
        title: Empty where it has none.
        image: Its file; None for a text alone.
    """

    id: str
    text: str = ""
    title: str = ""
    image: Path | None = None


def read_queries(path: str | os.PathLike[str]) -> dict[str, Query]:
    """Queries by id.

    Raises:
        RetrievalError: A line is no such object, an id is there twice, an image's file does not exist.
    """
    return {id: Query(id, text or None, image) for id, text, image, _ in _entries(path)}


def read_corpus(path: str | os.PathLike[str]) -> dict[str, Document]:
    """Items by id.

    Raises:
        RetrievalError: As `read_queries`.
    """
    return {
        id: Document(id, text, _text(content, "title", line), image)
        for id, text, image, (line, content) in _entries(path)
    }


def write_queries(path: str | os.PathLike[str], queries: Iterable[Query]) -> None:
    """Write queries; images are named relative to the file's folder where they lie below it."""
    write_lines(path, (_line(path, _id=q.id, text=q.text, image=q.image) for q in queries))


def write_corpus(path: str | os.PathLike[str], documents: Iterable[Document]) -> None:
    """Write items; images are named as in `write_queries`."""
    write_lines(path, (_line(path, _id=d.id, title=d.title, text=d.text, image=d.image) for d in documents))


def _line(path: str | os.PathLike[str], **values: str | Path | None) -> str:
    folder = Path(path).absolute().parent
    named: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Path):
            absolute = value.absolute()
            value = (absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute).as_posix()
        if value is not None:
            named[key] = value
    return json.dumps(named, ensure_ascii=False)


_Entry = tuple[str, str, Path | None, tuple[Line, dict[str, Any]]]


def _entries(path: str | os.PathLike[str]) -> Iterator[_Entry]:
    """Id, text, image and the rest of each line."""
    seen: set[str] = set()
    for line, content in json_objects(path):
        id, text = _text(content, "_id", line), _text(content, "text", line)
        if not id:
            raise line.error(f"has no '_id' (it has: {', '.join(content) or 'nothing'}); give it one")
        if id in seen:
            raise line.error(f"'_id' {id!r} is there twice; give every line its own")
        seen.add(id)
        image = _image(_text(content, "image", line), line)
        if not text and image is None:
            raise line.error(f"{id!r} has neither 'text' nor 'image'; give one, or both")
        yield id, text, image, (line, content)


def _text(content: dict[str, Any], key: str, line: Line) -> str:
    """A value that is text; empty where it is not there, null or blank."""
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise line.error(f"{key!r} is {value!r}, not text; put it between quotes")
    return value if value and value.strip() else ""


def _image(name: str, line: Line) -> Path | None:
    if not name:
        return None
    path = line.path.parent / name
    if not path.is_file():
        raise line.error(f"image {name!r} does not exist in {line.path.parent}; paths are relative to there")
    return path
