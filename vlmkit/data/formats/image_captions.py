"""A folder of images with captions: a text file beside each image, or one table for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vlmkit.data.formats import files
from vlmkit.data.formats.json_rows import JsonRows
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
        check: Refuse an image without a caption, or a bad row of the table, at the start; else when it is
            reached, such rows after all images.

    Raises:
        VlmkitError: An image has no caption or an empty one, or a row of the table no image; names it.
    """
    files.check_limit(limit)
    root = files.folder(folder)
    names = _names(root)
    images = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    files.check_any(images, str(root))
    found = _captions(root, names, images)
    texts = [_caption(root, name, found) for name in images[:limit]]
    bad = [text for text in texts if isinstance(text, VlmkitError)]
    if check and (bad or found.stray):
        raise (found.stray or bad)[0]
    used = [*images, *(f"{found.table} bad row {i}" for i in range(len(found.stray)))][:limit]
    texts += found.stray[: len(used) - len(texts)]
    errors = {i: str(text) for i, text in enumerate(texts) if isinstance(text, VlmkitError)}
    captions = Texts("" if isinstance(text, VlmkitError) else text for text in texts)
    return CaptionedImages(root, Texts(used), captions, errors)


class CaptionedImages(LazySamples):
    """Images in a folder with a caption each.

    Args:
        root: The folder.
        names: Paths below it.
        captions: As many.
        errors: What is wrong with samples that cannot be used, by number.
    """

    def __init__(self, root: Path, names: Texts, captions: Texts, errors: Mapping[int, str]) -> None:
        self.root, self.names, self.captions, self.errors = root, names, captions, dict(errors)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> Sample:
        """An image, and its caption as the answer to nothing."""
        if number in self.errors:
            raise VlmkitError(self.errors[number])
        name, caption = self.names[number], self.captions[number]
        conversation = (Message("user", (IMAGE,)), Message("assistant", (caption,)))
        return Sample(name, (self.root / name,), (conversation,), (caption,))

    def name(self, number: int) -> str:
        """The image's path, the id that it would have."""
        return self.names[number]


def _names(root: Path) -> list[str]:
    """Paths of all files below a folder, relative to it; sorted folder by folder."""
    found: list[str] = []
    for folder, _, own in os.walk(root):
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in own if (Path(folder) / name).is_file()]
    return sorted(found, key=lambda name: name.split("/"))


@dataclass
class Captions:
    """What was found to say about images.

    Attributes:
        find: An image to its caption, empty where it has none; or to what is wrong with it.
        table: Name of the table; empty for text files.
        stray: Rows of the table that are no image's.
    """

    find: Callable[[str], str | VlmkitError]
    table: str = ""
    stray: list[VlmkitError] = field(default_factory=list)


def _captions(root: Path, names: Sequence[str], images: Sequence[str]) -> Captions:
    tables = [table for table in TABLES if table in names]
    if len(tables) > 1:
        raise VlmkitError(f"{root} has both {' and '.join(TABLES)}; remove one")
    if tables:
        known: dict[str, str | VlmkitError] = {}
        stray = list(_read_table(root, root / tables[0], frozenset(images), known))
        return Captions(lambda image: known.get(image, ""), tables[0], stray)
    paths = (PurePosixPath(name) for name in names)
    texts = {p.with_suffix("").as_posix(): p.as_posix() for p in paths if p.suffix.lower() == ".txt"}
    return Captions(lambda image: _text_beside(root, texts, image))


def _text_beside(root: Path, texts: Mapping[str, str], image: str) -> str:
    name = texts.get(PurePosixPath(image).with_suffix("").as_posix())
    return "" if name is None else _read(root / name)


def _read_table(
    root: Path, table: Path, images: Collection[str], known: dict[str, str | VlmkitError]
) -> Iterator[VlmkitError]:
    """Fill in `known`; gives what is wrong with rows that are no image's."""
    rows = JsonRows(table, parse=False)
    for number in range(len(rows)):
        try:
            place, row = rows[number]
            name = _row_image(root, place, row, images)
            if name in known:
                raise VlmkitError(
                    f"{place}, field 'file_name': {root / name} has a caption already; remove one"
                )
        except VlmkitError as error:
            yield error
            continue
        try:
            known[name] = files.text_field(row, "text", place)
        except VlmkitError as error:
            known[name] = error


def _row_image(root: Path, place: str, row: files.Row, images: Collection[str]) -> str:
    """The image that a row of the table names."""
    image = files.file_below(root, files.text_field(row, "file_name", place), place, "file_name")
    if not image.is_file():
        raise VlmkitError(f"{place}, field 'file_name': {image} does not exist; add it or remove the row")
    name = image.relative_to(root).as_posix()
    if name not in images:
        raise VlmkitError(
            f"{place}, field 'file_name': {image} is not among the images found in {root} "
            f"(possible: {', '.join(sorted(SUFFIXES))}); convert it, or give its plain path"
        )
    return name


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VlmkitError(f"{path} is not UTF-8 text ({error}); convert it") from None


def _caption(root: Path, name: str, captions: Captions) -> str | VlmkitError:
    """An image's caption, or what is wrong with it."""
    try:
        found = captions.find(name)
    except VlmkitError as error:
        return error
    if isinstance(found, VlmkitError):
        return found
    return found.strip() or _no_caption(root / name)


def _no_caption(image: Path) -> VlmkitError:
    return VlmkitError(
        f"image {image} has no caption; write {image.stem}.txt beside it, or a row in {TABLES[0]}"
    )
