"""What the formats share: fields of rows with errors that name them, paths in rows, opening, the limit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vlmkit.errors import MissingExtraError, UsageError, VlmkitError

Row = dict[str, Any]


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


def matching(pattern: str) -> list[Path]:
    """The file of that name, or the files that a pattern with `*` names, sorted.

    Raises:
        UsageError: There is none.
    """
    path = Path(pattern).expanduser()
    inside = str(path.relative_to(path.anchor))
    found = [path] if path.is_file() else sorted(p for p in Path(path.anchor).glob(inside) if p.is_file())
    if not found:
        raise UsageError(f"there is no file {pattern}; check the path or pattern")
    return found


def file_below(root: Path, name: str, place: str, field: str) -> Path:
    """The path that a row names, which must lie in its folder.

    Links that the folder's owner put there may lead elsewhere, as where LLaVA's `coco/` is one.

    Raises:
        VlmkitError: It lies elsewhere, or is no path.
    """
    if "\0" in name:
        raise VlmkitError(f"{place}, field {field!r}: {name!r} is no path; correct it")
    path = root / name
    # Most names have nothing to look at more closely, and there are millions of them.
    if not (os.path.normpath(name).startswith(("..", os.sep))):
        return path
    here = Path.cwd()
    if not Path(os.path.normpath(here / path)).is_relative_to(os.path.normpath(here / root)):
        raise VlmkitError(
            f"{place}, field {field!r}: {name!r} leads out of {root}; "
            "give a path relative to that folder, of a file in it"
        )
    return path


def open_file(path: Path, wanted: str) -> BinaryIO:
    """A file to read bytes from.

    Args:
        path: Of the file.
        wanted: What is needed, for errors (`a CSV file`).

    Raises:
        VlmkitError: It is not there or cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise VlmkitError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise VlmkitError(f"{path} cannot be read ({error.strerror}); give {wanted}") from None


@contextmanager
def with_datasets(what: str) -> Iterator[Any]:
    """The package `datasets`, and its errors in one line.

    Args:
        what: What is loaded, for errors.

    Raises:
        MissingExtraError: The package is not installed.
        VlmkitError: It cannot load that.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "train") from None
    try:
        yield datasets
    except VlmkitError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise VlmkitError(f"{what} cannot be loaded: {reason}") from error


def check_any(samples: Sized, where: str) -> None:
    """Refuse an empty data set.

    Raises:
        VlmkitError: There is no sample.
    """
    if not len(samples):
        raise VlmkitError(f"{where} holds no sample; check the path")
