"""LLaVA's JSON: rows of `id`, `image` and `conversations`.

The format is that of github.com/haotian-liu/LLaVA, `docs/Finetune_Custom_Data.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlmkit.data.formats.files import Row, check_any, check_limit, file_below, folder, text_field
from vlmkit.data.formats.json_rows import JsonRows
from vlmkit.data.formats.lazy import RowSamples
from vlmkit.data.formats.sources import embedded_image
from vlmkit.data.problems import ImageSlotsError, UnsupervisedError
from vlmkit.data.sample import IMAGE, Conversation, Message, Part, Sample
from vlmkit.data.segments import DEFAULT_IMAGE_TOKEN, check_turns
from vlmkit.errors import VlmkitError

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "human": "user",
    "gpt": "assistant",
}


def llava_json(
    path: str | Path, image_folder: str | Path, limit: int | None = None, check: bool = True
) -> Sequence[Sample]:
    """Read a LLaVA data set, JSON or JSONL; each row is a sample with one conversation.

    `image` is a file name, a list of them, or absent (also null or empty); each `<image>` in the texts takes
    the next one. A name may also be a `data:` URI, the image itself. Turns alternate and no answer is empty:
    LLaVA drops a first turn of `gpt` without a word, here it is an error.

    Every row is read and checked once at the start, and read again when its sample is asked for: what stays
    in memory is where each row is, 16 bytes.

    Args:
        path: The file; JSONL if its name ends so.
        image_folder: What the image names are relative to; no image lies outside it.
        limit: Use the first so many rows.
        check: Refuse malformed rows at the start; else each is an error when it is reached.

    Raises:
        VlmkitError: A row is malformed; names file, row, id and field.
    """
    check_limit(limit)
    make = partial(_sample, root=folder(image_folder))
    rows = JsonRows(Path(path), make if check else None, limit, parse=check)
    check_any(rows, str(path))
    return RowSamples(rows, make)


def _sample(place: str, row: Row, root: Path) -> Sample:
    name = row.get("id", place)
    if not isinstance(name, str | int):
        raise VlmkitError(f"{place}, field 'id': text or a number is needed, found {type(name).__name__}")
    place = f"{place} (id {str(name)!r})" if "id" in row else place
    images = tuple(_image(image, root, place) for image in _images(row, place))
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise VlmkitError(f"{place}, field 'conversations': a list of messages is needed, found {turns!r}")
    conversation = tuple(read_turn(turn, f"{place}, conversations[{i}]") for i, turn in enumerate(turns))
    check_conversation(conversation, f"{place}, field 'conversations'")
    slots = sum(part is IMAGE for message in conversation for part in message.parts)
    if slots != len(images):
        raise ImageSlotsError(
            f"{place}, field 'conversations': {slots} {DEFAULT_IMAGE_TOKEN} placeholders for "
            f"{len(images)} images; write one for each image"
        )
    return Sample(str(name), images, (conversation,))


def _images(row: Row, place: str) -> list[str]:
    value = row.get("image")
    images = [] if value in (None, "") else [value] if isinstance(value, str) else value
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise VlmkitError(f"{place}, field 'image': a file name or a list of them is needed, found {value!r}")
    return images


def _image(name: str, root: Path, place: str) -> Path | bytes:
    embedded = embedded_image(name, f"{place}, field 'image'")
    return file_below(root, name, place, "image") if embedded is None else embedded


def check_conversation(conversation: Conversation, place: str) -> None:
    """Refuse turns that no format can train on: they do not alternate, or an answer is empty.

    Raises:
        VlmkitError: Names the place.
    """
    try:
        check_turns(conversation, generate=False)
    except VlmkitError as error:
        raise VlmkitError(f"{place}: {error}") from None
    for i, message in enumerate(conversation):
        if message.role == "assistant" and not message.text.strip():
            raise UnsupervisedError(f"{place}: the answer in turn {i} is empty; fill it or remove the row")


def read_turn(turn: Any, place: str) -> Message:
    """A message of `from` and `value`.

    Raises:
        VlmkitError: It is none, or the speaker is unknown; names the place.
    """
    if not isinstance(turn, dict):
        raise VlmkitError(
            f"{place}: an object with 'from' and 'value' is needed, found {type(turn).__name__}"
        )
    speaker = text_field(turn, "from", place)
    if speaker not in ROLES:
        raise VlmkitError(f"{place}, field 'from': unknown {speaker!r} (known: {', '.join(sorted(ROLES))})")
    return Message(ROLES[speaker], split_slots(text_field(turn, "value", place)))


def split_slots(text: str) -> tuple[Part, ...]:
    """Text with an image slot for each `<image>`."""
    parts: list[Part] = []
    for i, piece in enumerate(text.split(DEFAULT_IMAGE_TOKEN)):
        parts += [IMAGE] * (i > 0) + [piece] * bool(piece)
    return tuple(parts)
