"""A folder of images with captions: a text file beside each image, or one table for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vlmkit.data.formats import files
from vlmkit.data.formats.json_rows import iter_rows
from vlmkit.data.formats.lazy import LazySamples, Texts
from vlmkit.data.sample import IMAGE, Message, Sample
from vlmkit.errors import VlmkitError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
TABLES = ("captions.jsonl", "metadata.jsonl")


def image_captions(folder: str | Path, limit: int | None = None, check: bool = True) -> Sequence[Sample]:
    """Read captioned images, subfolders included, in the order of their paths.

    Captions come from `captions.jsonl` or `metadata.jsonl` with `file_name` and `text` (the imagefolder
    convention of Hugging Face datasets), or where there is neither from a `.txt` of the same stem.

    Args:
        folder: Where the images are.
        limit: Use the first so many images.
        check: Refuse an image without a caption at the start; else when it is reached.

    Raises:
        VlmkitError: An image has no caption or an empty one, or a row of the table no image; names it.
    """
    files.check_limit(limit)
    root = files.folder(folder)
    names = _names(root)
    images = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    files.check_any(images, str(root))
    find = _captions(root, names, set(images))
    used = images[:limit]
    captions = Texts(_caption(root, name, find, check) for name in used)
    return CaptionedImages(root, Texts(used), captions)


class CaptionedImages(LazySamples):
    """Images in a folder with a caption each.

    Args:
        root: The folder.
        names: Paths below it.
        captions: As many.
    """

    def __init__(self, root: Path, names: Texts, captions: Texts) -> None:
        self.root, self.names, self.captions = root, names, captions

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> Sample:
        """An image, and its caption as the answer to nothing."""
        name, caption = self.names[number], self.captions[number]
        if not caption:
            raise _no_caption(self.root / name)
        conversation = (Message("user", (IMAGE,)), Message("assistant", (caption,)))
        return Sample(name, (self.root / name,), (conversation,), (caption,))


def _names(root: Path) -> list[str]:
    """Paths of all files below a folder, relative to it; sorted folder by folder."""
    found: list[str] = []
    for folder, _, own in os.walk(root):
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in own if (Path(folder) / name).is_file()]
    return sorted(found, key=lambda name: name.split("/"))


def _captions(root: Path, names: Sequence[str], images: Collection[str]) -> Callable[[str], str]:
    """A function: an image's caption, empty where it has none."""
    tables = [table for table in TABLES if table in names]
    if len(tables) > 1:
        raise VlmkitError(f"{root} has both {' and '.join(TABLES)}; remove one")
    if tables:
        captions = _table(root, root / tables[0], images)
        return lambda image: captions.get(image, "")
    paths = (PurePosixPath(name) for name in names)
    texts = {p.with_suffix("").as_posix(): p.as_posix() for p in paths if p.suffix.lower() == ".txt"}
    return lambda image: _text_beside(root, texts, image)


def _text_beside(root: Path, texts: Mapping[str, str], image: str) -> str:
    name = texts.get(PurePosixPath(image).with_suffix("").as_posix())
    return "" if name is None else _read(root / name)


def _table(root: Path, table: Path, images: Collection[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    for place, row in iter_rows(table):
        image = files.file_below(root, files.text_field(row, "file_name", place), place, "file_name")
        if not image.is_file():
            raise VlmkitError(f"{place}, field 'file_name': {image} does not exist; add it or remove the row")
        name = image.relative_to(root).as_posix()
        if name not in images:
            raise VlmkitError(
                f"{place}, field 'file_name': {image} is not among the images found in {root} "
                f"(possible: {', '.join(sorted(SUFFIXES))}); convert it, or give its plain path"
            )
        if name in captions:
            raise VlmkitError(f"{place}, field 'file_name': {image} has a caption already; remove one")
        captions[name] = files.text_field(row, "text", place)
    return captions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VlmkitError(f"{path} is not UTF-8 text ({error}); convert it") from None


def _caption(root: Path, name: str, find: Callable[[str], str], check: bool) -> str:
    caption = find(name).strip()
    if check and not caption:
        raise _no_caption(root / name)
    return caption


def _no_caption(image: Path) -> VlmkitError:
    return VlmkitError(
        f"image {image} has no caption; write {image.stem}.txt beside it, or a row in {TABLES[0]}"
    )
