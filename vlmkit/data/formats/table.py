"""Tables with a column for each thing: image, question, answer. CSV, TSV and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlmkit.data.formats.csv_rows import CsvRows
from vlmkit.data.formats.files import Row, check_any, check_limit, matching, text_field, with_datasets
from vlmkit.data.formats.hf_rows import Columns, read_sample
from vlmkit.data.formats.lazy import Rows, RowSamples
from vlmkit.data.sample import Sample
from vlmkit.errors import VlmkitError, unknown_name

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"


@dataclass(frozen=True)
class TableColumns:
    """Which column holds what.

    Attributes:
        image: Columns of the images, in the order in which they are shown.
        question: None where the answer is a caption.
        answer: What is learnt.
        messages: A whole conversation instead of question and answer.
        folder: What image paths are relative to; None for paths as they are.
    """

    image: tuple[str, ...]
    question: str | None
    answer: str
    messages: str | None
    folder: Path | None

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        text = [self.question, self.answer] if self.messages is None else [self.messages]
        return [*self.image, *(name for name in text if name is not None)]


def table(
    path: str | Path,
    image: str | list[str] | None = "image",
    question: str | None = "question",
    answer: str = "answer",
    messages: str | None = None,
    image_folder: str | Path = "",
    limit: int | None = None,
    check: bool = True,
) -> Sequence[Sample]:
    """A CSV, TSV or Parquet file with columns of images, questions and answers.

    An image is a path or a `data:` URI, in Parquet also encoded bytes or a list; an empty cell is none. Where
    the question has no `<image>`, the images stand before it.

    The rows of CSV and TSV are all read and checked once, and read again when they are asked for. Parquet is
    read through the package `datasets`, which unpacks it once into a cache on disk: a shuffled order would
    else unpack a whole group of rows for each one. There the first row is looked at, and a malformed one is
    an error when it is reached.

    Args:
        path: The file; for Parquet also a pattern such as `data/train-*.parquet`.
        image: Column of the images, or several columns of one image each; null for text only.
        question: Column of the question; null where the answer is a caption of the image.
        answer: Column of the answer.
        messages: Column of a conversation, JSON or a list, in a form that `hf_dataset` knows; question and
            answer are not read then.
        image_folder: What image paths are relative to; none leads out of it.
        limit: Use the first so many rows.
        check: Refuse malformed rows at the start; else each is an error when it is reached.

    Raises:
        MissingExtraError: Parquet without the package datasets.
        UsageError: No such column or kind of file.
        VlmkitError: The file cannot be read, or a row is malformed; names file, row and column.
    """
    check_limit(limit)
    images = () if image is None else (image,) if isinstance(image, str) else tuple(image)
    columns = TableColumns(images, question, answer, messages, Path(image_folder) if image_folder else None)
    make = partial(_sample, columns=columns)
    suffix = Path(path).suffix.lower()
    rows: Rows
    if suffix in DELIMITERS:
        rows = CsvRows(Path(path), DELIMITERS[suffix], make if check else None, limit)
    elif suffix == PARQUET:
        rows = _parquet(str(path), limit)
    else:
        raise unknown_name("kind of table", suffix, [*DELIMITERS, PARQUET])
    check_any(rows, str(path))
    if check:
        make(*rows[0])
    return RowSamples(rows, make)


def _sample(place: str, row: Row, columns: TableColumns) -> Sample:
    """A row as `hf_rows` reads it."""
    for name in columns.names:
        if name not in row:
            raise unknown_name(f"column of {place}", name, row)
    images: list[Any] = []
    for name in columns.image:
        value = row[name]
        images += value if isinstance(value, list) else [] if value in (None, "") else [value]
    text = columns.messages or columns.answer
    said = {"images": images, "id": row.get("id") or None, text: _talk(place, row, columns)}
    sample = read_sample(said, place, Columns(text, "images", columns.folder))
    if columns.messages is None and columns.question is None:
        return replace(sample, captions=(row[columns.answer],))
    return sample


def _talk(place: str, row: Row, columns: TableColumns) -> Any:
    if columns.messages is not None:
        return _messages(row[columns.messages], f"{place}, field {columns.messages!r}")
    answer = _filled(row, columns.answer, place)
    asked = "" if columns.question is None else _filled(row, columns.question, place)
    return [{"user": asked, "assistant": answer}]


def _filled(row: Mapping[str, Any], name: str, place: str) -> str:
    text = text_field(dict(row), name, place)
    if not text.strip():
        raise VlmkitError(f"{place}, field {name!r}: is empty; fill it or remove the row")
    return text


def _messages(value: Any, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise VlmkitError(f"{place} is not JSON ({error}); repair it") from None


class ArrowRows:
    """Rows of a memory-mapped table.

    Args:
        rows: A `datasets.Dataset` in the format arrow.
        path: Names it in errors.
    """

    def __init__(self, rows: Any, path: str) -> None:
        self.rows = rows
        self.path = path

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[str, Row]:
        return f"{self.path} row {number}", self.rows[number].to_pylist()[0]


def _parquet(path: str, limit: int | None) -> ArrowRows:
    with with_datasets(path) as datasets:
        files = [str(file) for file in matching(path)]
        rows = datasets.load_dataset("parquet", data_files=files, split="train").with_format("arrow")
    return ArrowRows(rows.select(range(min(limit or len(rows), len(rows)))), path)
