"""Prompt formats: how a conversation becomes text, and which of it is supervised.

`plain` and `vicuna_v1` follow LLaVA 1.5 (github.com/haotian-liu/LLaVA, `llava/conversation.py` and
`llava/train/train.py`: `preprocess_plain`, `preprocess_multimodal`, `preprocess_v1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vlmkit.data.chat_template import render_chat
from vlmkit.data.sample import IMAGE, Conversation, Message
from vlmkit.data.segments import Segment, check_text, check_turns, eos_token
from vlmkit.errors import VlmkitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROMPTS", "PromptFormat", "Render", "Segment"]

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Render(Protocol):
    """A conversation to segments."""

    def __call__(
        self, conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
    ) -> list[Segment]:
        """Render a conversation.

        Args:
            conversation: To train on it ends with an answer, to be answered with the user's turn.
            tokenizer: Gives EOS, image token and chat template.
            generate: Render up to where the assistant's next answer starts.

        Raises:
            VlmkitError: The format cannot render the conversation; the message says why.
        """


@dataclass(frozen=True)
class PromptFormat:
    """A prompt format.

    Attributes:
        render: The rule.
        summary: The rule in words.
    """

    render: Render
    summary: str


def _plain(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """Images, caption, newline; the user's words are discarded, as LLaVA's stage 1 does."""
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    images = [Segment(IMAGE) for part in conversation[0].parts if part is IMAGE]
    if len(conversation) != 2 - generate or not images:
        raise VlmkitError(
            "the prompt plain takes one user turn with an image and one answer, found "
            f"{len(conversation)} messages with {len(images)} images in the first; "
            "choose vicuna_v1 or chat_template"
        )
    if generate:
        return images
    caption = conversation[1]
    return [*images, Segment(f"{caption.text}\n", caption.weight)]


def _vicuna_v1(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """`SYSTEM USER: question ASSISTANT: answer</s>USER: ...`; supervised is ` answer</s>`."""
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    system, turns = VICUNA_SYSTEM, conversation
    if conversation[0].role == "system":
        system, turns = conversation[0].text, conversation[1:]
    segments = [Segment(f"{system} ")]
    for message in turns:
        if message.role == "user":
            segments += [Segment("USER: "), *_user_turn(message), Segment(" ASSISTANT:")]
        else:
            # The space in front belongs to the answer: sentencepiece and byte-level vocabularies put it in
            # the answer's first token, and the prompt must end where that token starts.
            segments.append(Segment(f" {message.text}{eos_token(tokenizer)}", message.weight))
    return segments


def _user_turn(message: Message) -> list[Segment]:
    """The turn's images go to its front, a newline after each, and the text is stripped (LLaVA 1.5)."""
    images = sum(part is IMAGE for part in message.parts)
    if not images:
        return [Segment(message.text)]
    lines: list[Segment] = [Segment(IMAGE), Segment("\n")] * images
    text = message.text.strip()
    return [*lines, Segment(text)] if text else lines[:-1]


PROMPTS: dict[str, PromptFormat] = {
    "plain": PromptFormat(_plain, "image, caption, newline; the question is discarded (LLaVA stage 1)"),
    "vicuna_v1": PromptFormat(_vicuna_v1, "system sentence, USER and ASSISTANT turns (LLaVA 1.5 stage 2)"),
    "chat_template": PromptFormat(render_chat, "the tokenizer's own chat template"),
}
