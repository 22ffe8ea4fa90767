"""The portions in which files are worked on: they depend on the list of files alone.

So an interrupted run and the next one go through the same portions, whatever is stored by then. Where several
items go through an encoder together (`batch`), those are of one portion, taken in order, and a portion's
vectors are kept all at once: a portion is embedded whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmkit_retrieval import images
from vlmkit_retrieval.scanned import ScannedFile

# 32 images of the largest allowed size are 4.8 GB as pixels; they are decoded `batch` at a time.
FILES = 32
ITEMS = 32


def blocks(files: Sequence[ScannedFile]) -> Iterator[Sequence[ScannedFile]]:
    """Fixed pieces of the sorted list of all files, whether they changed or not."""
    for start in range(0, len(files), FILES):
        yield files[start : start + FILES]


def portions(block: Sequence[ScannedFile]) -> Iterator[Sequence[ScannedFile]]:
    """Files whose items are one portion: all images of a block, and every other file on its own."""
    single = [file for file in block if is_image(file)]
    if single:
        yield single
    yield from ([file] for file in block if not is_image(file))


def is_image(file: ScannedFile) -> bool:
    """Whether a file is one item."""
    return file.id.lower().endswith(images.SUFFIXES)
