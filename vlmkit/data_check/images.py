"""Every image of a recipe's data opened once, however many rows, sources and stages use it.

First the rows are read, and each image gets a key: of its path, of its place in a tar, or of its bytes. Then
one use of each key is opened. Ids of rows are compared by such keys too. What stays in memory are arrays: 8
bytes a sample, 8 a use, 32 an image (by their `nbytes`); the keys, 16 bytes a use and 16 a row, are there
until they are sorted.
Shapes: S samples, U uses of images in samples, N distinct images.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit.data.problems import kind_of
from vlmkit.data.sample import FileSlice, ImageSource, open_image, read_row
from vlmkit.data_check.parallel import Progress, in_chunks
from vlmkit.data_check.subject import DataSet
from vlmkit.errors import VlmkitError

KEY = 16


@dataclass(frozen=True)
class Use:
    """One use of an image: image `place` of sample `number` of a data set."""

    data: int
    number: int
    place: int


@dataclass(frozen=True)
class Images:
    """What is known of every image.

    Attributes:
        first_S1: For each data set, where a checked sample's uses start, by position in its `numbers`.
        start: For each data set, the first of its uses.
        image_U: Use to image.
        use_N: Image to its first use.
        sizes_N2: Width and height; 0 where it could not be opened.
        content_N: Hash of the encoded bytes.
        problems: Image to kind and message.
        data: The data sets.
        same_ids: For each data set, (number of a row, the first one of the same id).
    """

    first_S1: list[NDArray[np.int64]]
    start: list[int]
    image_U: NDArray[np.int64]
    use_N: NDArray[np.int64]
    sizes_N2: NDArray[np.int32]
    content_N: NDArray[np.bytes_]
    problems: dict[int, tuple[str, str]]
    data: Sequence[DataSet]
    same_ids: list[list[tuple[int, int]]]

    def of(self, data: int, position: int) -> list[int]:
        """The images of a sample, in order."""
        first = self.first_S1[data] + self.start[data]
        found: list[int] = self.image_U[first[position] : first[position + 1]].tolist()
        return found

    def use(self, image: int) -> Use:
        """Where an image is used first."""
        return _use(self.first_S1, self.start, self.data, int(self.use_N[image]))

    def twins(self) -> list[tuple[int, int]]:
        """(image, an earlier one with the same bytes), by hash of the whole content."""
        opened = np.flatnonzero(self.sizes_N2[:, 0])
        order = opened[np.lexsort((self.use_N[opened], self.content_N[opened]))]
        pairs: list[tuple[int, int]] = []
        earliest = -1
        for image in order.tolist():
            if earliest >= 0 and self.content_N[image] == self.content_N[earliest]:
                pairs.append((image, earliest))
            else:
                earliest = image
        return sorted(pairs, key=lambda pair: int(self.use_N[pair[0]]))


def look_at_images(data: Sequence[DataSet], workers: int, progress: Progress) -> Images:
    """Read all rows, then open every image once.

    Args:
        data: Each data set once.
        workers: Processes.
        progress: Called with what is done, how many, of how many.
    """
    firsts: list[NDArray[np.int64]] = []
    same_ids: list[list[tuple[int, int]]] = []
    starts, joined, total = [0], bytearray(), sum(len(own.numbers) for own in data)
    before = 0

    def told(done: int) -> None:
        progress("rows", before + done, total)

    for own in data:
        counts, ids = array("q", [0]), bytearray()
        for found, keys, names in in_chunks(partial(_keys, own), own.numbers, workers, told):
            counts.extend(found)
            joined += keys
            ids += names
        before += len(own.numbers)
        firsts.append(np.cumsum(np.array(counts, np.int64)))
        same_ids.append(_same(bytes(ids), own.numbers))
        starts.append(len(joined) // KEY)
    # Text of a fixed width that ends in zeros is compared as if they were there, so keys stay exact.
    _, use_N, image_U = np.unique(
        np.frombuffer(bytes(joined), f"S{KEY}"), return_index=True, return_inverse=True
    )
    sizes, contents, problems = _open_all(firsts, starts, data, use_N, workers, progress)
    return Images(firsts, starts, image_U, use_N, sizes, contents, problems, data, same_ids)


def _keys(data: DataSet, numbers: Sequence[int]) -> tuple[list[int], bytes, bytes]:
    """Images of each sample, all their keys, and a key of each row's id; what cannot be read has no image."""
    counts: list[int] = []
    keys, ids = bytearray(), bytearray()
    for number in numbers:
        row = read_row(data.samples, number)
        images = row.sample.images if row.sample else ()
        counts.append(len(images))
        ids += hashlib.blake2b(row.name.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()
        for image in images:
            keys += _key(image)
    return counts, bytes(keys), bytes(ids)


def _same(ids: bytes, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """(number, the first one with the same key) of those that are not the first."""
    _, first, key_of = np.unique(np.frombuffer(ids, f"S{KEY}"), return_index=True, return_inverse=True)
    earliest = first[key_of]
    again = np.flatnonzero(earliest != np.arange(len(earliest)))
    return [(numbers[i], numbers[earliest[i]]) for i in again.tolist()]


def _key(source: ImageSource) -> bytes:
    """What tells images apart before they are opened."""
    if isinstance(source, Path):
        named = b"path " + str(source).encode("utf-8", "surrogateescape")
    elif isinstance(source, FileSlice):
        named = f"part {source.offset} {source.size} {source.path}".encode("utf-8", "surrogateescape")
    elif isinstance(source, Image.Image):
        named = f"image {source.mode} {source.size} ".encode() + source.tobytes()
    else:
        named = b"bytes " + source
    return hashlib.blake2b(named, digest_size=KEY).digest()


def _use(
    firsts: Sequence[NDArray[np.int64]], starts: Sequence[int], data: Sequence[DataSet], use: int
) -> Use:
    own = int(np.searchsorted(starts, use, side="right")) - 1
    inside = use - starts[own]
    position = int(np.searchsorted(firsts[own], inside, side="right")) - 1
    return Use(own, data[own].numbers[position], inside - int(firsts[own][position]))


@dataclass(frozen=True)
class _Open:
    """Opens images by number."""

    firsts: Sequence[NDArray[np.int64]]
    starts: Sequence[int]
    data: Sequence[DataSet]
    use_N: NDArray[np.int64]

    def __call__(self, images: Sequence[int]) -> list[tuple[int, int, int, bytes, str, str]]:
        """(image, width, height, hash, kind of problem, message) of each."""
        found: list[tuple[int, int, int, bytes, str, str]] = []
        for image in images:
            use = _use(self.firsts, self.starts, self.data, int(self.use_N[image]))
            source = self.data[use.data].samples[use.number].images[use.place]
            content = hashlib.blake2b(digest_size=KEY)
            try:
                opened = open_image(source, told=content.update)
                found.append((image, *opened.size, content.digest(), "", ""))
            except VlmkitError as error:
                found.append((image, 0, 0, b"", kind_of(error), str(error)))
        return found


def _open_all(
    firsts: Sequence[NDArray[np.int64]],
    starts: Sequence[int],
    data: Sequence[DataSet],
    use_N: NDArray[np.int64],
    workers: int,
    progress: Progress,
) -> tuple[NDArray[np.int32], NDArray[np.bytes_], dict[int, tuple[str, str]]]:
    sizes_N2 = np.zeros((len(use_N), 2), np.int32)
    content_N = np.zeros(len(use_N), f"S{KEY}")
    problems: dict[int, tuple[str, str]] = {}
    # In the order of the files, as they lie on a disk.
    order: list[int] = np.argsort(use_N).tolist()
    work = _Open(firsts, starts, data, use_N)
    for part in in_chunks(work, order, workers, lambda n: progress("images", n, len(order)), 16):
        for image, width, height, content, kind, message in part:
            sizes_N2[image], content_N[image] = (width, height), content
            if kind:
                problems[image] = kind, message
    return sizes_N2, content_N, problems
