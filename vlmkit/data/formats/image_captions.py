"""A folder of images with captions: a text file beside each image, or one table for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from vlmkit.data.formats import files
from vlmkit.data.formats.json_rows import iter_rows
from vlmkit.data.sample import IMAGE, Message, Sample
from vlmkit.errors import VlmkitError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TABLES = ("captions.jsonl", "metadata.jsonl")


def image_captions(folder: str | Path, limit: int | None = None) -> Sequence[Sample]:
    """Read captioned images, subfolders included, in the order of their paths.

    Captions come from `captions.jsonl` or `metadata.jsonl` with `file_name` and `text` (the imagefolder
    convention of Hugging Face datasets), or where there is neither from a `.txt` of the same stem.

    Args:
        folder: Where the images are.
        limit: Use the first so many images.

    Raises:
        VlmkitError: An image has no caption or an empty one, or a row of the table no image; names it.
    """
    files.check_limit(limit)
    root = files.folder(folder)
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    images = [p for p in paths if p.suffix.lower() in SUFFIXES]
    files.check_any(images, str(root))
    captions = _captions(root, paths, set(images))
    return [_sample(root, image, captions) for image in images[:limit]]


def _captions(root: Path, paths: Sequence[Path], images: Collection[Path]) -> dict[Path, str]:
    """Captions by image, or for text files by the path without its suffix."""
    tables = [root / name for name in TABLES if root / name in paths]
    if len(tables) > 1:
        raise VlmkitError(f"{root} has both {' and '.join(TABLES)}; remove one")
    if tables:
        return _table(root, tables[0], images)
    texts = [p for p in paths if p.suffix.lower() == ".txt"]
    return {p.with_suffix(""): _read(p) for p in texts}


def _table(root: Path, table: Path, images: Collection[Path]) -> dict[Path, str]:
    captions: dict[Path, str] = {}
    for place, row in iter_rows(table):
        image = files.file_below(root, files.text_field(row, "file_name", place), place, "file_name")
        if not image.is_file():
            raise VlmkitError(f"{place}, field 'file_name': {image} does not exist; add it or remove the row")
        if image not in images:
            raise VlmkitError(
                f"{place}, field 'file_name': {image} is not among the images found in {root} "
                f"(possible: {', '.join(sorted(SUFFIXES))}); convert it, or give its plain path"
            )
        if image in captions:
            raise VlmkitError(f"{place}, field 'file_name': {image} has a caption already; remove one")
        captions[image] = files.text_field(row, "text", place)
    return captions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VlmkitError(f"{path} is not UTF-8 text ({error}); convert it") from None


def _sample(root: Path, image: Path, captions: dict[Path, str]) -> Sample:
    caption = captions.get(image, captions.get(image.with_suffix(""), "")).strip()
    if not caption:
        raise VlmkitError(
            f"image {image} has no caption; write {image.stem}.txt beside it, or a row in {TABLES[0]}"
        )
    conversation = (Message("user", (IMAGE,)), Message("assistant", (caption,)))
    return Sample(image.relative_to(root).as_posix(), (image,), (conversation,), (caption,))
