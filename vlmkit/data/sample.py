"""One schema for every data set: samples with images, conversations and captions.

Nothing here opens an image before it is needed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from PIL import Image

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
    """

    path: Path
    offset: int
    size: int
    name: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.path}, member {self.name}"

    def read(self) -> bytes:
        """The bytes.

        Raises:
            VlmkitError: The file cannot be read, or ends before them.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise VlmkitError(f"{self} cannot be read: {error.strerror}; check the path") from None
        if len(data) != self.size:
            raise VlmkitError(
                f"{self} has {len(data)} of its {self.size} bytes; the file was cut off, replace it"
            )
        return data


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
                raise VlmkitError(
                    f"sample {self.id!r} has {len(self.images)} images and {slots} image slots "
                    "in a conversation; write one <image> for each image"
                )

    def open_images(self) -> list[Image.Image]:
        """Decode the images as RGB.

        Raises:
            VlmkitError: An image is missing, unreadable or too large; the message names it and the sample.
        """
        return [open_image(source, f"sample {self.id!r}") for source in self.images]


def open_image(source: ImageSource | str, owner: str = "") -> Image.Image:
    """Open one image as RGB, upright by its EXIF orientation; the same pixels as an index gets.

    Args:
        source: A file, encoded bytes, a part of a file, or an image in memory.
        owner: Put in front of an error, e.g. the sample's name.

    Raises:
        VlmkitError: Missing, unreadable, or more than 50 million pixels (checked before decoding).
    """
    prefix = f"{owner}: " if owner else ""
    try:
        if isinstance(source, Image.Image):
            return _from_memory(source)
        if isinstance(source, FileSlice):
            return decode_image(source.read())
        return decode_image(source if isinstance(source, bytes) else read_file(Path(source)))
    except ImageError as error:
        where = str(source) if isinstance(source, str | Path | FileSlice) else "image bytes"
        raise VlmkitError(prefix + _reason(where, error)) from None
    except VlmkitError as error:
        raise VlmkitError(f"{prefix}{error}") from None


def _from_memory(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageSizeError(image.width, image.height)
    return upright_rgb(image)


def _reason(where: str, error: ImageError) -> str:
    if isinstance(error, ImageSizeError):
        return f"{where} has {error.width} x {error.height} pixels; the limit is {MAX_PIXELS:,}, resize it"
    if isinstance(error.__cause__, FileNotFoundError):
        return f"image {where} does not exist; check the path"
    if isinstance(error.__cause__, IsADirectoryError):
        return f"{where} is a folder, an image file is needed"
    return f"{where} cannot be read as an image ({error}); replace or remove it"
