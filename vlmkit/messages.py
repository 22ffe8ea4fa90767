"""Questions and chat messages, in the forms users write them, to conversations with their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlmkit.data.sample import IMAGE, Conversation, Message, Part, open_image
from vlmkit.errors import UsageError
from vlmkit_retrieval.images import to_rgb

ImageSource = str | Path | Image.Image
# The names that transformers knows for where an image is.
SOURCES = ("image", "path", "url")


@dataclass(frozen=True)
class Query:
    """A conversation that waits for an answer, with its images."""

    conversation: Conversation
    images: tuple[Image.Image, ...]


def question(images: Sequence[ImageSource], text: str) -> Query:
    """Images, then a question about them."""
    if not text.strip():
        raise UsageError("the question is empty; ask something")
    parts: tuple[Part, ...] = (*[IMAGE] * len(images), text)
    return Query((Message("user", parts),), tuple(read_image(i) for i in images))


def conversation(messages: Sequence[dict[str, Any]]) -> Query:
    """Messages that wait for an answer, in the form of `VLM.chat`."""
    turns, sources = read_messages(messages)
    if not turns or turns[-1].role != "user":
        raise UsageError("the last message must be the user's; there is nothing to answer")
    return Query(turns, read_sources(sources))


def read_messages(messages: Sequence[dict[str, Any]]) -> tuple[Conversation, list[ImageSource | None]]:
    """Messages to turns and where their images are; None for `{"type": "image"}`, an image that comes later.

    Raises:
        UsageError: A message or an item of its content has another form.
    """
    turns: list[Message] = []
    sources: list[ImageSource | None] = []
    for message in messages:
        if not {"role", "content"} <= message.keys():
            raise UsageError(
                f"a message needs 'role' and 'content', found: {', '.join(message) or 'nothing'}"
            )
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append(Message(message["role"], tuple(_part(item) for item in items)))
        sources += [_source(item) for item in items if item["type"] == "image"]
    return tuple(turns), sources


def _part(item: dict[str, Any]) -> Part:
    if item.get("type") == "text" and set(item) == {"type", "text"}:
        return str(item["text"])
    if item.get("type") == "image" and len(item) <= 2 and set(item) <= {"type", *SOURCES}:
        return IMAGE
    raise UsageError(
        f"message content {item!r} is not possible; write {{'type': 'image', 'image': FILE}} "
        "or {'type': 'text', 'text': TEXT}"
    )


def _source(item: dict[str, Any]) -> ImageSource | None:
    return next((item[name] for name in SOURCES if name in item), None)


def read_sources(sources: Sequence[ImageSource | None]) -> tuple[Image.Image, ...]:
    """Decode the images of messages.

    Raises:
        VlmkitError: An image is not given, or cannot be read.
    """
    if any(source is None for source in sources):
        raise UsageError(
            "message content {'type': 'image'} is not possible without an image; "
            "write {'type': 'image', 'image': FILE}"
        )
    return tuple(read_image(source) for source in sources if source is not None)


def read_image(image: ImageSource) -> Image.Image:
    """A file or a Pillow image as RGB.

    Raises:
        VlmkitError: The file cannot be read, or the image is something else.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, str | Path):
        raise UsageError(
            f"an image of type {type(image).__name__} is not possible; give a file or a Pillow image"
        )
    return open_image(image)
