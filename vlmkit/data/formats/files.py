"""What the formats share: JSON rows with errors that name file and line, paths in rows, the limit."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmkit.errors import UsageError, VlmkitError

Row = dict[str, Any]


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """Objects of a JSON list or, where the name ends in .jsonl, one a line; each with its place for errors.

    Raises:
        VlmkitError: The file is missing, not UTF-8, not JSON, or not a list of objects.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise VlmkitError(f"{path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VlmkitError(f"{path} cannot be read as text ({error}); give a JSON or JSONL file") from None
    if path.suffix.lower() == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        rows = [(f"{path} line {n}", _parse(line, f"{path} line {n}")) for n, line in lines if line.strip()]
    else:
        content = _parse(text, str(path))
        if not isinstance(content, list):
            raise VlmkitError(f"{path} holds a {type(content).__name__}; a list of objects is needed")
        rows = [(f"{path} row {i}", row) for i, row in enumerate(content)]
    for place, row in rows:
        if not isinstance(row, dict):
            raise VlmkitError(f"{place} is a {type(row).__name__}; an object is needed")
    return rows


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise VlmkitError(f"{place} is not JSON ({error}); repair it") from None


def text_field(row: Row, field: str, place: str) -> str:
    """A field that must be text.

    Raises:
        VlmkitError: It is absent or something else.
    """
    value = row.get(field)
    if not isinstance(value, str):
        found = type(value).__name__ if field in row else "nothing"
        raise VlmkitError(f"{place}, field {field!r}: text is needed, found {found}")
    return value


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves nothing.

    Raises:
        UsageError: It is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give 1 or more, or leave it out for all samples")


def folder(path: str | Path) -> Path:
    """A folder that exists.

    Raises:
        VlmkitError: It does not.
    """
    if not Path(path).is_dir():
        raise VlmkitError(f"{path} is not a folder; check the path")
    return Path(path)


def file_below(root: Path, name: str, place: str, field: str) -> Path:
    """The path that a row names, which must lie in its folder.

    Links that the folder's owner put there may lead elsewhere, as where LLaVA's `coco/` is one.

    Raises:
        VlmkitError: It lies elsewhere, or is no path.
    """
    if "\0" in name:
        raise VlmkitError(f"{place}, field {field!r}: {name!r} is no path; correct it")
    path = root / name
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise VlmkitError(
            f"{place}, field {field!r}: {name!r} leads out of {root}; "
            "give a path relative to that folder, of a file in it"
        )
    return path


def check_any(samples: Sequence[Any], where: str) -> None:
    """Refuse an empty data set.

    Raises:
        VlmkitError: There is no sample.
    """
    if not samples:
        raise VlmkitError(f"{where} holds no sample; check the path")
