"""Image files to items, each with the caption that stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmkit_retrieval.errors import FileError, FileLostError
from vlmkit_retrieval.images import decode_image, image_size, read_file, sha256
from vlmkit_retrieval.scan import ScannedFile
from vlmkit_retrieval.sources.captions import Captions
from vlmkit_retrieval.sources.items import Item


class ImageSource:
    """One item a file, with the file's id."""

    rule = "image"

    def __init__(self, captions: Captions) -> None:
        self._captions = captions

    def read(self, file: ScannedFile) -> Iterator[Item]:
        """The item of a file.

        Raises:
            FileError: The file cannot be read, is no image, or has more than 50 million pixels.
        """
        data = read_file(Path(file.id))
        width, height = image_size(data)
        payload: dict[str, Any] = {
            "path": file.id,
            "kind": "image",
            "rule": self.rule,
            "width": width,
            "height": height,
        }
        caption = self._captions.of(file)
        if caption is not None:
            payload["caption_source"] = caption.source
        sha = sha256(data)
        text = None if caption is None else caption.text
        yield Item(file.id, "image", sha, text, payload, _decoder(Path(file.id), sha))

    def check(self, files: Sequence[ScannedFile]) -> Collection[str]:
        """A folder's one file of captions: what is wrong with it is told though no image is read."""
        return self._captions.check(files)

    def close(self) -> None:
        """Nothing is held."""


def _decoder(path: Path, sha: str) -> Callable[[], Image.Image]:
    """Reads the file again: waiting items hold no bytes. A vector is never stored for other content."""

    def decode() -> Image.Image:
        return decode_image(read_again(path, sha))

    return decode


def read_again(path: Path, sha: str) -> bytes:
    """The content of a file that was read before.

    Raises:
        FileLostError: It is another one now, or gone.
    """
    try:
        data = read_file(path)
    except FileError as error:
        raise FileLostError(str(error)) from error
    if sha256(data) != sha:
        raise FileLostError("it changed while it was read; sync again")
    return data
