"""One schema for every data set: samples with images, conversations and captions.

Nothing here opens an image before it is needed.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, runtime_checkable

from PIL import Image

from vlmkit.data.problems import (
    ImageMissingError,
    ImageSlotsError,
    ImageTooLargeError,
    ImageUnreadableError,
)
from vlmkit.errors import VlmkitError
from vlmkit_retrieval.images import (
    MAX_PIXELS,
    ImageError,
    ImageSizeError,
    decode_image,
    read_file,
    upright_rgb,
)


class ImageSlot(enum.Enum):
    """Where an image stands in a message."""

    IMAGE = "image"


IMAGE: Final = ImageSlot.IMAGE
Part = str | ImageSlot


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: Who speaks; only `assistant` turns are supervised.
        parts: Text and image slots in order; slots take the sample's images one after the other.
        weight: Loss weight of the turn's tokens.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The text without image slots."""
        return "".join(self.texts)

    @property
    def texts(self) -> list[str]:
        """The pieces of text between image slots."""
        return [part for part in self.parts if isinstance(part, str)]


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class FileSlice:
    """Bytes inside a larger file, as a member of a tar; nothing is kept open, so that processes can share it.

    Attributes:
        path: The file.
        offset: Of the first byte.
        size: In bytes.
        name: What the bytes are called in errors.
        stamp: Size and time of change (ns) of the file that the position is of; not compared where absent.
    """

    path: Path
    offset: int
    size: int
    name: str = field(compare=False)
    stamp: tuple[int, int] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.path}, member {self.name}"

    def read(self) -> bytes:
        """The bytes.

        Raises:
            VlmkitError: The file cannot be read, ends before them, or is another one than it was.
        """
        try:
            with self.path.open("rb") as file:
                now = os.fstat(file.fileno())
                if self.stamp is not None and self.stamp != (now.st_size, now.st_mtime_ns):
                    raise VlmkitError(f"{self.path} was changed while it is in use; start again")
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageUnreadableError(f"{self} cannot be read: {error.strerror}; check the path") from None
        if len(data) != self.size:
            raise ImageUnreadableError(
                f"{self} has {len(data)} of its {self.size} bytes; the file was cut off, replace it"
            )
        return data


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out of its step.

    Attributes:
        id: Of the sample; of a row that cannot be read, what `row_name` says.
        kind: A name from `PROBLEMS`.
        message: What is wrong with it.
    """

    id: str
    kind: str
    message: str


ImageSource = Path | bytes | FileSlice | Image.Image


@dataclass(frozen=True)
class Sample:
    """Images with what is said about them.

    Attributes:
        id: Names the sample in errors and reports.
        images: Where the images are: a file, encoded bytes, a part of a file, or an image in memory.
        conversations: Independent conversations about the same images; each has one slot for every image.
        captions: Texts that describe the (first) image, for the contrastive objective.
        source: Which source of a mixture it is from; empty without one.
    """

    id: str
    images: tuple[ImageSource, ...]
    conversations: tuple[Conversation, ...]
    captions: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for conversation in self.conversations:
            slots = sum(part is IMAGE for message in conversation for part in message.parts)
            if slots != len(self.images):
                raise ImageSlotsError(
                    f"sample {self.id!r} has {len(self.images)} images and {slots} image slots "
                    "in a conversation; write one <image> for each image"
                )

    def open_images(self) -> list[Image.Image]:
        """Decode the images as RGB.

        Raises:
            VlmkitError: An image is missing, unreadable or too large; the message names it and the sample.
        """
        return [open_image(source, f"sample {self.id!r}") for source in self.images]


@dataclass(frozen=True)
class ReadRow:
    """A sample, or the error with which reading it ends.

    Attributes:
        name: The sample's id; of one that cannot be read what `row_name` says.
        sample: None where it cannot be read.
        error: Why not; None where it can.
    """

    name: str
    sample: Sample | None
    error: VlmkitError | None = None


def read_row(samples: Sequence[Sample], number: int) -> ReadRow:
    """A sample by number, or why it cannot be read.

    Whatever a damaged row raises says something about that row alone: it must not end the look at the others.
    """
    try:
        sample = samples[number]
        return ReadRow(sample.id, sample)
    except VlmkitError as error:
        return ReadRow(row_name(samples, number), None, error)
    except MemoryError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        why = VlmkitError(f"row {number} cannot be read ({type(error).__name__}: {said}); repair it")
        why.__cause__ = error
        return ReadRow(row_name(samples, number), None, why)


@runtime_checkable
class Named(Protocol):
    """Samples that know what a row is called which cannot be read."""

    def name(self, number: int) -> str:
        """The id that the row gives itself; else `row N`, counted from 0."""


def row_name(samples: Sequence[Sample], number: int) -> str:
    """What a row is called that cannot be read, in every report and file."""
    return samples.name(number) if isinstance(samples, Named) else f"row {number}"


def readable(samples: Sequence[Sample]) -> Iterator[Sample | None]:
    """Each sample in order, None in place of one that cannot be read."""
    for number in range(len(samples)):
        yield read_row(samples, number).sample


def open_image(
    source: ImageSource | str, owner: str = "", told: Callable[[bytes], object] | None = None
) -> Image.Image:
    """Open one image as RGB, upright by its EXIF orientation; the same pixels as an index gets.

    Args:
        source: A file, encoded bytes, a part of a file, or an image in memory.
        owner: Put in front of an error, e.g. the sample's name.
        told: Called with the encoded bytes before they are decoded (with the pixels of an image in memory).

    Raises:
        VlmkitError: Missing, unreadable, or more than 50 million pixels (checked before decoding).
    """
    prefix = f"{owner}: " if owner else ""
    try:
        if isinstance(source, Image.Image):
            if told is not None:
                told(source.tobytes())
            return _from_memory(source)
        data = _encoded(source)
        if told is not None:
            told(data)
        return decode_image(data)
    except ImageError as error:
        where = str(source) if isinstance(source, str | Path | FileSlice) else "image bytes"
        raise _reason(prefix, where, error) from None
    except VlmkitError as error:
        error.args = (f"{prefix}{error}",)
        raise


def _encoded(source: str | Path | bytes | FileSlice) -> bytes:
    if isinstance(source, FileSlice):
        return source.read()
    return source if isinstance(source, bytes) else read_file(Path(source))


def _from_memory(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageSizeError(image.width, image.height)
    return upright_rgb(image)


def _reason(prefix: str, where: str, error: ImageError) -> VlmkitError:
    if isinstance(error, ImageSizeError):
        size = f"{error.width} x {error.height}"
        return ImageTooLargeError(
            f"{prefix}{where} has {size} pixels; the limit is {MAX_PIXELS:,}, resize it"
        )
    if isinstance(error.__cause__, Image.DecompressionBombError):
        return ImageTooLargeError(f"{prefix}{where} has more than {MAX_PIXELS:,} pixels; resize it")
    if isinstance(error.__cause__, FileNotFoundError):
        return ImageMissingError(f"{prefix}image {where} does not exist; check the path")
    if isinstance(error.__cause__, IsADirectoryError):
        return ImageUnreadableError(f"{prefix}{where} is a folder, an image file is needed")
    return ImageUnreadableError(f"{prefix}{where} cannot be read as an image ({error}); replace or remove it")
