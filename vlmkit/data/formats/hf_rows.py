"""Rows of Hugging Face data sets as samples: the three forms in which conversations are published.

- `role` and `content`, a text or a list of parts (huggingface.co/docs/trl/dataset_formats), in `messages`.
- `from` and `value` (LLaVA), in `conversations`.
- `user` and `assistant` (huggingface.co/datasets/HuggingFaceM4/the_cauldron, and FineVision), in `texts`: the
  turns of one conversation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlmkit.data.formats.files import Row, file_below, text_field
from vlmkit.data.formats.llava_json import check_conversation, read_turn, split_slots
from vlmkit.data.formats.sources import embedded_image
from vlmkit.data.problems import ImageSlotsError
from vlmkit.data.sample import IMAGE, Conversation, FileSlice, ImageSource, Message, Part, Sample
from vlmkit.data.segments import DEFAULT_IMAGE_TOKEN
from vlmkit.errors import VlmkitError

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Columns:
    """Where a sample is in a row.

    Attributes:
        text: Column of the conversation.
        images: Column of the images; None for text only.
        folder: What image paths are relative to, and where they must lead; None for paths as they are.
    """

    text: str
    images: str | None
    folder: Path | None


def read_sample(row: Row, place: str, columns: Columns) -> Sample:
    """One row as a sample.

    Images without a slot of their own (no `<image>` in the texts, no part of the type image) go in front of
    the first user turn; LLaVA's form must have its slots.

    Args:
        row: Column to value, images not decoded.
        place: Names the row in errors, and the sample where the row has no `id`.
        columns: Where to look.

    Raises:
        VlmkitError: The row is malformed; names row and field.
    """
    images = _images(row.get(columns.images), columns, place) if columns.images else ()
    conversation, strict = _conversation(row[columns.text], f"{place}, field {columns.text!r}")
    slots = sum(part is IMAGE for message in conversation for part in message.parts)
    if images and not slots and not strict:
        conversation = _images_first(conversation, len(images))
    elif slots != len(images):
        raise ImageSlotsError(
            f"{place}, field {columns.text!r}: {slots} image slots for {len(images)} images in "
            f"{columns.images!r}; write one {DEFAULT_IMAGE_TOKEN} for each image"
        )
    name = row.get("id")
    return Sample(str(name) if isinstance(name, str | int) else place, images, (conversation,))


def _images(value: Any, columns: Columns, place: str) -> tuple[ImageSource, ...]:
    """Encoded images or files, of one image, a list, or nothing."""
    items = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(
        _source(item, columns.folder, place, f"{columns.images}[{i}]") for i, item in enumerate(items)
    )


def _source(item: Any, folder: Path | None, place: str, field: str) -> ImageSource:
    # The `Image` feature is stored as both: bytes where the image is embedded, else a path.
    feature = isinstance(item, dict)
    if feature:
        item = item.get("bytes") or item.get("path")
    if isinstance(item, Image.Image | FileSlice) or (isinstance(item, bytes) and item):
        return item
    if isinstance(item, str) and item:
        embedded = embedded_image(item, f"{place}, field {field!r}")
        if embedded is not None:
            return embedded
        # `datasets` itself writes whole paths into that feature.
        if folder is None or (feature and Path(item).is_absolute()):
            return Path(item)
        return file_below(folder, item, place, field)
    raise VlmkitError(
        f"{place}, field {field!r}: encoded bytes or a path is needed, found {type(item).__name__}"
    )


def _conversation(value: Any, place: str) -> tuple[Conversation, bool]:
    """The messages, and whether their form always writes image slots."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        found = f"a list of {type(value[0]).__name__}" if value and isinstance(value, list) else repr(value)
        raise VlmkitError(f"{place}: a list of turns is needed, found {found[:100]}")
    for key, read in _FORMS.items():
        if key in value[0]:
            turns = [m for i, turn in enumerate(value) for m in read(turn, f"{place}[{i}]")]
            check_conversation(tuple(turns), place)
            return tuple(turns), key == "from"
    known = "'role' and 'content', 'from' and 'value', or 'user' and 'assistant'"
    raise VlmkitError(f"{place}: turns with {known} are needed, found {', '.join(value[0]) or 'nothing'}")


def _llava(turn: Any, place: str) -> list[Message]:
    return [read_turn(turn, place)]


def _pair(turn: Row, place: str) -> list[Message]:
    asked, answered = (text_field(turn, key, place) for key in ("user", "assistant"))
    return [Message("user", split_slots(asked)), Message("assistant", split_slots(answered))]


def _message(turn: Row, place: str) -> list[Message]:
    role = text_field(turn, "role", place)
    if role not in ROLES:
        raise VlmkitError(f"{place}, field 'role': unknown {role!r} (known: {', '.join(sorted(ROLES))})")
    content = turn.get("content")
    if isinstance(content, list):
        parts = [part for i, item in enumerate(content) for part in _part(item, f"{place}.content[{i}]")]
        return [Message(ROLES[role], tuple(parts))]
    return [Message(ROLES[role], split_slots(text_field(turn, "content", place)))]


def _part(item: Any, place: str) -> tuple[Part, ...]:
    """A part of the type text or image; a table fills keys that a part does not have with None."""
    given = {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else {}
    if given == {"type": "image"}:
        return (IMAGE,)
    if set(given) == {"type", "text"} and given["type"] == "text":
        return split_slots(text_field(given, "text", place))
    raise VlmkitError(
        f"{place}: {{'type': 'text', 'text': ...}} or {{'type': 'image'}} is needed (the image itself stands "
        f"in the column of images), found {', '.join(given) or type(item).__name__}"
    )


_FORMS: dict[str, Callable[[Any, str], list[Message]]] = {"role": _message, "from": _llava, "user": _pair}


def _images_first(conversation: Conversation, images: int) -> Conversation:
    first = next((i for i, message in enumerate(conversation) if message.role == "user"), 0)
    asked = replace(conversation[first], parts=(*[IMAGE] * images, *conversation[first].parts))
    return (*conversation[:first], asked, *conversation[first + 1 :])
