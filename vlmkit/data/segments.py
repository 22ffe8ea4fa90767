"""Rendered text with what is supervised: the output of every prompt format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmkit.data.problems import PlaceholderError
from vlmkit.data.sample import IMAGE, Conversation, Message, Part
from vlmkit.errors import UsageError, VlmkitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation.

    Attributes:
        part: Text exactly as the model sees it, or an image slot.
        weight: Loss weight of its tokens; 0 = not supervised.
    """

    part: Part
    weight: float = 0.0


def split_text(text: str, placeholder: str, weight: float = 0.0) -> list[Segment]:
    """Rendered text to segments: each placeholder is an image slot, and the text between has the weight."""
    segments: list[Segment] = []
    for i, piece in enumerate(text.split(placeholder)):
        segments += [Segment(IMAGE)] * (i > 0) + [Segment(piece, weight)] * bool(piece)
    return segments


def join_parts(parts: Iterable[Part], placeholder: str) -> str:
    """Parts to text, with the placeholder for each image slot."""
    return "".join(placeholder if part is IMAGE else str(part) for part in parts)


def image_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The string that stands for an image in text: the tokenizer's own, or `<image>`."""
    return getattr(tokenizer, "image_token", None) or DEFAULT_IMAGE_TOKEN


def eos_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The string that ends an answer.

    Raises:
        UsageError: The tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise UsageError("the tokenizer has no EOS token, an answer could not end; set tokenizer.eos_token")
    return str(tokenizer.eos_token)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that steer and are no text: those the tokenizer has names for, and all it marks as special."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def split_system(conversation: Conversation, default: str) -> tuple[str, Conversation]:
    """The system text, or the default one where there is none, and the turns."""
    if conversation[0].role == "system":
        return conversation[0].text, conversation[1:]
    return default, conversation


def check_text(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse text that would be read as an image.

    Raises:
        VlmkitError: A text part contains the image placeholder.
    """
    for placeholder in sorted({image_token(tokenizer), DEFAULT_IMAGE_TOKEN}):
        for i, message in enumerate(messages):
            if placeholder in message.text:
                raise PlaceholderError(
                    f"the text of message {i} ({message.role}) contains the image placeholder "
                    f"{placeholder!r}; write images as IMAGE parts, or remove it from the text"
                )


def check_turns(messages: Sequence[Message], *, generate: bool) -> None:
    """Refuse conversations whose turns no format can render.

    Args:
        messages: Optionally a system message, then user and assistant in turn.
        generate: The assistant's answer is still to come.

    Raises:
        VlmkitError: The roles do not alternate, or the last speaker is the wrong one.
    """
    roles = [m.role for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    last = "user" if generate else "assistant"
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise VlmkitError(
            f"the roles are {roles}; possible: an optional system, then user and assistant in turn"
        )
    if not turns or turns[-1] != last:
        purpose = "to be answered" if generate else "to train on"
        raise VlmkitError(f"the roles are {roles}; a conversation {purpose} must end with the {last}'s turn")
