"""Hugging Face data sets through the package `datasets`: saved folders, parquet and JSON files, hub ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmkit.data.formats.files import check_any, check_limit, with_datasets
from vlmkit.data.formats.hf_rows import Columns, read_sample
from vlmkit.data.formats.lazy import LazySamples, own_id
from vlmkit.data.sample import Sample
from vlmkit.errors import UsageError, VlmkitError, unknown_name

TEXT_COLUMNS = ("messages", "conversations", "texts")
RATINGS = "_ratings"
BATCH = 10_000
FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


def hf_dataset(
    path: str,
    split: str = "train",
    name: str | None = None,
    streaming: bool = False,
    images: str | None = "images",
    text: str | None = None,
    image_folder: str = "",
    min_ratings: dict[str, int] | None = None,
    limit: int | None = None,
    check: bool = True,
) -> Sequence[Sample]:
    """Read a data set of conversations about images; see `hf_rows` for the forms that are known.

    A row is read when its sample is asked for, from a memory-mapped table, and its images are not decoded:
    the memory needed does not grow with the data set. So a malformed row is an error when it is reached; only
    the first one is looked at here. An image may have been put in as a PIL image (which `datasets` stores
    encoded), as a dictionary with `bytes` or `path`, or as a path.

    Streaming downloads no more than it reads, and needs a `limit`: the order of training is a shuffle of all
    samples that a resumed run can find again, which an endless stream does not have. The first `limit` rows
    are read at once and stay in memory, images encoded.

    Args:
        path: A folder of `save_to_disk`, one with parquet, JSON or image files, one such file, or a hub id.
        split: Which part; a single file is the split that it is asked for.
        name: Configuration of a data set that has several.
        streaming: Read the first `limit` rows without the rest.
        images: Column of the images, one or a list a row; null for text only.
        text: Column of the conversation; by default `messages`, `conversations` or `texts`.
        image_folder: What image paths are relative to; none leads out of it, but for whole paths that the
            feature `Image` of `datasets` holds.
        min_ratings: Keep the rows whose every turn has at least these ratings, `{relevance: 4}` for the
            column `relevance_ratings` (FineVision has four such, with 1 to 5 a turn). A turn without passes.
        limit: Use the first so many rows, of those that are kept.
        check: Refuse a malformed first row at the start; else when it is reached.

    Raises:
        MissingExtraError: The package datasets is not installed.
        UsageError: Streaming without a limit or with ratings; no such split, column or rating.
        VlmkitError: There is no such data set, or the first row is malformed.
    """
    check_limit(limit)
    if streaming and limit is None:
        raise UsageError(
            f"{path}: streaming needs a limit, as shuffling and resuming need a length; set limit: N, "
            "or streaming: false"
        )
    if streaming and min_ratings:
        raise UsageError(f"{path}: min_ratings reads a column of the whole data set; set streaming: false")
    rows = _load(path, split, name, streaming)
    if min_ratings:
        rows = _rated(rows, min_ratings, path)
    if streaming:
        rows = list(rows.take(limit))
    elif limit is not None and limit < len(rows):
        rows = rows.select(range(limit))
    check_any(rows, f"{path} ({split})")
    columns = Columns(
        _text_column(rows[0].column_names, text, path), images, Path(image_folder) if image_folder else None
    )
    if images is not None and images not in rows[0].column_names:
        raise unknown_name(f"column of {path} (images: null is for text only)", images, rows[0].column_names)
    samples = HfSamples(rows, columns, f"{path} {split}")
    if check:
        _ = samples[0]
    return samples


class HfSamples(LazySamples):
    """Samples made of table rows when they are asked for.

    Args:
        rows: Each item a one-row `pyarrow.Table`.
        columns: Where a sample is in a row.
        origin: Names the data set in errors.
    """

    def __init__(self, rows: Any, columns: Columns, origin: str) -> None:
        self.rows = rows
        self.columns = columns
        self.origin = origin

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> Sample:
        """The sample of a row."""
        row = self.rows[number].to_pylist()[0]
        return read_sample(row, f"{self.origin} row {number}", self.columns)

    def name(self, number: int) -> str:
        """The id in its row."""
        return own_id(self.rows[number].to_pylist()[0]) or super().name(number)


def _load(path: str, split: str, name: str | None, streaming: bool) -> Any:
    """The rows in arrow form, which decodes no image."""
    place = Path(path).expanduser()
    if path.startswith((".", "/", "~")) and not place.exists():
        raise VlmkitError(f"{path} does not exist; give a folder, a file or a hub id")
    with with_datasets(f"data set {path!r}, split {split!r}") as datasets:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            rows = _saved(datasets.load_from_disk(str(place)), path, split)
            # A saved table is mapped into memory, which is what streaming is for.
            return rows.to_iterable_dataset().with_format("arrow") if streaming else rows.with_format("arrow")
        kind, files = str(place) if place.is_dir() else path, None
        if place.is_file():
            if place.suffix not in FILES:
                raise unknown_name("kind of data file", place.suffix, FILES)
            kind, files = FILES[place.suffix], {split: str(place)}
        rows = datasets.load_dataset(kind, name, data_files=files, split=split, streaming=streaming)
        return rows.with_format("arrow")


def _rated(rows: Any, least: dict[str, int], path: str) -> Any:
    """The rows whose turns are all rated high enough, read from the columns of ratings alone."""
    columns = {f"{name}{RATINGS}": rating for name, rating in least.items()}
    for column in columns:
        if column not in rows.column_names:
            known = [name.removesuffix(RATINGS) for name in rows.column_names if name.endswith(RATINGS)]
            raise unknown_name(f"rating of {path}", column.removesuffix(RATINGS), known)
    kept: list[int] = []
    for start, batch in enumerate(rows.select_columns(list(columns)).iter(BATCH)):
        ratings = [batch[column].to_pylist() for column in columns]
        for i, own in enumerate(zip(*ratings)):
            rated = zip(own, columns.values())
            if all(value is None or value >= low for turns, low in rated for value in turns or ()):
                kept.append(start * BATCH + i)
    return rows.select(kept)


def _saved(saved: Any, path: str, split: str) -> Any:
    """The split of a folder that `save_to_disk` wrote: of one table, or of several."""
    if isinstance(saved, dict):
        if split not in saved:
            raise unknown_name(f"split of {path}", split, saved)
        return saved[split]
    if saved.split is not None and str(saved.split) != split:
        raise unknown_name(f"split of {path}", split, [str(saved.split)])
    return saved


def _text_column(columns: Sequence[str], wanted: str | None, path: str) -> str:
    if wanted is not None:
        if wanted not in columns:
            raise unknown_name(f"column of {path}", wanted, columns)
        return wanted
    found = [column for column in TEXT_COLUMNS if column in columns]
    if not found and {"prompt", "completion"} <= set(columns):
        raise UsageError(
            f"{path}: columns of prompt and completion are not read; write one of both: "
            "data.map(lambda row: {'messages': row['prompt'] + row['completion']}) where they hold turns, "
            "{'texts': [{'user': row['prompt'], 'assistant': row['completion']}]} where they hold text"
        )
    if len(found) != 1:
        raise UsageError(
            f"{path} has {' and '.join(found) or 'none'} of the columns {', '.join(TEXT_COLUMNS)} "
            f"(it has: {', '.join(columns)}); name the one to read with text: COLUMN"
        )
    return found[0]
