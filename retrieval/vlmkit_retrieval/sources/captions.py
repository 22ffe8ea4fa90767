"""Captions that stand beside images. Nothing that a caption names or links to is opened or fetched.

A caption is text from strangers: it is kept as it is, template tokens (`<image>`, `<|im_end|>`) included, and
whoever puts it into a prompt must treat it as data.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.images import read_file
from vlmkit_retrieval.scan import ScannedFile
from vlmkit_retrieval.sidecars import METADATA
from vlmkit_retrieval.sources.caption_rows import BadRows, caption_of, rows_of
from vlmkit_retrieval.sources.items import Covers, Refuse
from vlmkit_retrieval.sources.text import decode_text

MAX_SIDECAR = 1024**2


@dataclass(frozen=True)
class Caption:
    """What a file says about an image.

    Attributes:
        text: Not empty.
        source: Path of the file that says so.
    """

    text: str
    source: str


class Captions:
    """Reads them; a folder's one file is read once, and told once what is wrong with it.

    Args:
        images: Ids of all scanned files: what rows may name.
        covers: Whether a path was looked for: rows may also name what lies elsewhere.
        refuse: Called with the path of a file of captions and why it, or a part of it, is not used. The image
            itself is used without a caption then.
    """

    def __init__(self, images: Collection[str], covers: Covers, refuse: Refuse) -> None:
        self._images, self._covers, self._refuse = images, covers, refuse
        self._folders: dict[str, dict[str, str]] = {}
        self._broken: set[str] = set()

    def check(self, files: Iterable[ScannedFile]) -> set[str]:
        """Read the folders' one files of captions.

        Returns:
            Paths of those that are not used as a whole.
        """
        for path in dict.fromkeys(path for file in files for path in file.captions):
            if _is_shared(path):
                self._shared(path)
        return self._broken

    def of(self, file: ScannedFile) -> Caption | None:
        """The caption of an image; none where files disagree."""
        found: Caption | None = None
        for path in file.captions:
            text = self._read(path, file.id)
            if text is None:
                continue
            if found is not None and found.text != text:
                name = PurePosixPath(file.id).name
                reason = f"another caption of {name} than in {found.source}; keep one (it has none now)"
                self._refuse(path, reason)
                return None
            found = found or Caption(text, path)
        return found

    def _read(self, path: str, image: str) -> str | None:
        if _is_shared(path):
            return self._shared(path).get(image)
        try:
            return _sidecar(path)
        except FileError as error:
            self._refuse(path, str(error))
            return None

    def _shared(self, path: str) -> dict[str, str]:
        if path not in self._folders:
            self._folders[path] = {}
            try:
                self._folders[path] = self._rows(path)
            except FileError as error:
                self._broken.add(path)
                self._refuse(path, str(error))
        return self._folders[path]

    def _rows(self, path: str) -> dict[str, str]:
        """Captions by image. Several rows of one image are several captions, one a line."""
        texts: dict[str, list[str]] = {}
        bad = BadRows()
        folder = PurePosixPath(path).parent
        for number, row in rows_of(path, bad):
            try:
                id, text = _image_of(row, folder), caption_of(row)
                if text is None:
                    raise FileError("has neither 'text' nor 'caption'")
            except FileError as error:
                bad.add(f"row {number} {error}")
                continue
            if id not in self._images:
                if not self._covers(id):
                    continue
                bad.add(f"row {number} names {_short(id)}, which is no image that was found", serious=False)
            elif text and text not in texts.setdefault(id, []):
                texts[id].append(text)
        if bad.summary:
            self._refuse(path, bad.summary)
        return {id: "\n".join(found) for id, found in texts.items() if found}


def _is_shared(path: str) -> bool:
    return path.rpartition("/")[2].lower() in METADATA


def _image_of(row: dict[str, Any], folder: PurePosixPath) -> str:
    """The id of the image that a row is about; it is compared with those that were found, never opened."""
    name = row.get("file_name", row.get("image"))
    if not isinstance(name, str):
        raise FileError("names no image ('file_name' or 'image')")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "://" in name:
        raise FileError(f"names {_short(name)}, which is no path below its folder")
    return (folder / path).as_posix()


def _short(name: str) -> str:
    return repr(name if len(name) <= 200 else f"{name[:200]}...")


def _sidecar(path: str) -> str | None:
    """The caption in an image's own file; None where it says nothing about one."""
    text = decode_text(read_file(Path(path), MAX_SIDECAR))
    if PurePosixPath(path).suffix.lower() != ".json":
        return caption_of({"text": text}) or None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"not JSON ({error})") from None
    # Annotations of other kinds have this name, too: without a caption they say nothing about one.
    return (caption_of(row) or None) if isinstance(row, dict) else None
