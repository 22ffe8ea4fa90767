"""Files to vectors in one pass: the next batches are read while the encoder works on this one.

Threads and not processes: Pillow decodes and resizes without Python's lock, and pixels need not be copied
between processes. What a file becomes does not depend on how many threads there are.

Shapes: B images, E retrieval width.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import PixelBatch, join_batches, pixel_batch
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.layouts.one_view import OneSquare
from vlmkit_retrieval.images import ImageError, decode_image, read_file
from vlmkit_retrieval.types import Unreadable

AnyPath = str | os.PathLike[str]
Read = Callable[[Path], PixelBatch | Unreadable]
# Batches of pixels in memory: the one that is encoded, and at most this many that are being read.
AHEAD = 2


class ReadFiles(NamedTuple):
    """A batch of files as pixels.

    Attributes:
        paths: Those that could be read, in order.
        pixels: One image a path; None if no file of the batch could be read.
        failures: The others, and why.
    """

    paths: tuple[Path, ...]
    pixels: PixelBatch | None
    failures: tuple[Unreadable, ...]


class EmbeddedFiles(NamedTuple):
    """A batch of files as vectors.

    Attributes:
        paths: Those that could be read, in order.
        vectors_BE: Unit-length, one a path.
        failures: The others, and why.
    """

    paths: tuple[Path, ...]
    vectors_BE: NDArray[np.float32]
    failures: tuple[Unreadable, ...]


def embed_files(
    encoder: VisionEncoder,
    paths: Iterable[AnyPath],
    batch_size: int = 32,
    workers: int = 2,
    draft: float = 0.0,
) -> Generator[EmbeddedFiles, None, None]:
    """Vectors of image files, batch after batch; the arguments are those of `read_files`.

    Without `draft` they are those that `embed_images` gives for the images of the same batch, bit by bit.

    Raises:
        VlmkitError: The encoder has no retrieval space.
    """
    with closing(read_files(encoder.spec, paths, batch_size, workers, draft, whole_only=True)) as batches:
        for read, pixels, failures in batches:
            none = np.zeros((0, encoder.embed_dim), np.float32)
            yield EmbeddedFiles(read, none if pixels is None else encoder.embed_batch(pixels), failures)


def read_files(
    spec: VisionSpec,
    paths: Iterable[AnyPath],
    batch_size: int = 32,
    workers: int = 2,
    draft: float = 0.0,
    whole_only: bool = False,
) -> Generator[ReadFiles, None, None]:
    """Decode and preprocess files ahead of who takes the batches; closing the iterator ends the threads.

    A batch is a fixed piece of `paths`: one with unreadable files is smaller, so that its other images stay
    in the same company.

    Args:
        spec: Of the encoder.
        paths: Files; a long or endless iterable is taken as far as it is needed.
        batch_size: Files of a batch.
        workers: Threads; each holds one decoded image at a time.
        draft: JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size while the shorter edge keeps
            `draft` times the pixels that the view needs; 0 for never. 3 changes pixels about as much as
            saving the file once more at quality 95. They are not those of `decode_image`, so use it only
            where nothing is compared with vectors made without it.
        whole_only: See `pixel_batch`.

    Raises:
        UsageError: `batch_size`, `workers` or `draft` does not fit.
    """
    edge = _check(spec, batch_size, workers, draft)
    # Checked here and not with the first batch: what follows is a generator.
    read = partial(_read, spec, edge, whole_only)
    return _batches(read, iter(paths), batch_size, ThreadPoolExecutor(workers, "vlmkit-read"))


def _batches(
    read: Read, paths: Iterator[AnyPath], batch_size: int, pool: ThreadPoolExecutor
) -> Generator[ReadFiles, None, None]:
    waiting: deque[tuple[Path, Future[PixelBatch | Unreadable]]] = deque()

    def submit(count: int) -> None:
        for path in map(Path, islice(paths, count)):
            waiting.append((path, pool.submit(read, path)))

    try:
        submit(AHEAD * batch_size)
        while waiting:
            done: list[tuple[Path, PixelBatch | Unreadable]] = []
            while waiting and len(done) < batch_size:
                path, future = waiting.popleft()
                done.append((path, future.result()))
                submit(1)
            yield _gather(done)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(spec: VisionSpec, edge: int, whole_only: bool, path: Path) -> PixelBatch | Unreadable:
    """One file; `edge` as in `decode_image`, `whole_only` as in `pixel_batch`."""
    try:
        image = decode_image(read_file(path), edge)
    except ImageError as error:
        return Unreadable(str(path), str(error))
    return pixel_batch(spec, [image], whole_only)


def _gather(done: list[tuple[Path, PixelBatch | Unreadable]]) -> ReadFiles:
    read = [(path, result) for path, result in done if isinstance(result, PixelBatch)]
    failures = tuple(result for _, result in done if isinstance(result, Unreadable))
    pixels = join_batches([result for _, result in read]) if read else None
    return ReadFiles(tuple(path for path, _ in read), pixels, failures)


def _check(spec: VisionSpec, batch_size: int, workers: int, draft: float) -> int:
    """The fewest pixels that the shorter edge of a JPEG file is decoded to; 0 for all."""
    for name, count in (("batch_size", batch_size), ("workers", workers)):
        if count < 1:
            raise UsageError(f"{name} {count} is not possible; give 1 or more")
    if not draft:
        return 0
    if draft < 1:
        raise UsageError(f"draft {draft} would enlarge what was made smaller; give 0 for never, or 1 or more")
    if not isinstance(spec.rule, OneSquare):
        raise UsageError(
            f"draft is not possible with layout {spec.layout!r}, whose views depend on the image's size; "
            "possible are layouts of one square view, such as square, crop and pad"
        )
    return math.ceil(draft * spec.frame.shortest_edge)


__all__ = ["EmbeddedFiles", "ReadFiles", "embed_files", "read_files"]
