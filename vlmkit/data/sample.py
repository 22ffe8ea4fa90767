"""One schema for every data set: samples with images, conversations and captions.

Nothing here opens an image before it is needed.
"""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from vlmkit.errors import VlmkitError
from vlmkit_retrieval.images import FORMATS, MAX_PIXELS, to_rgb


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
        return "".join(p for p in self.parts if isinstance(p, str))


Conversation = tuple[Message, ...]


@dataclass(frozen=True)
class Sample:
    """Images with what is said about them.

    Attributes:
        id: Names the sample in errors and reports.
        images: Where the images are: a file, or encoded bytes.
        conversations: Independent conversations about the same images; each has one slot for every image.
        captions: Texts that describe the (first) image, for the contrastive objective.
    """

    id: str
    images: tuple[Path | bytes, ...]
    conversations: tuple[Conversation, ...]
    captions: tuple[str, ...] = ()

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


def open_image(source: Path | str | bytes, owner: str = "") -> Image.Image:
    """Decode one image as RGB, upright by its EXIF orientation.

    Args:
        source: A file or encoded bytes.
        owner: Put in front of an error, e.g. the sample's name.

    Raises:
        VlmkitError: Missing, unreadable, or more than 50 million pixels (checked before decoding).
    """
    where = "image bytes" if isinstance(source, bytes) else str(source)
    prefix = f"{owner}: " if owner else ""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VlmkitError(
                    f"{prefix}{where} has {image.width} x {image.height} pixels; "
                    f"the limit is {MAX_PIXELS:,}, resize it"
                )
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise VlmkitError(f"{prefix}image {where} does not exist; check the path") from None
    except IsADirectoryError:
        raise VlmkitError(f"{prefix}{where} is a folder, an image file is needed") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VlmkitError(
            f"{prefix}{where} cannot be read as an image ({error}); replace or remove it"
        ) from None
