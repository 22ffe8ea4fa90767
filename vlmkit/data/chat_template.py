"""The tokenizer's own chat template, with the assistant's spans found by rendering it turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmkit.data.problems import ImageSlotsError
from vlmkit.data.sample import IMAGE, Conversation, Message
from vlmkit.data.segments import (
    Segment,
    check_text,
    check_turns,
    eos_token,
    image_token,
    join_parts,
    split_text,
)
from vlmkit.errors import UsageError, VlmkitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_chat(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """Render with `tokenizer.apply_chat_template`; supervised is each answer through its EOS.

    The template is rendered up to each answer with its generation prompt, and again with the answer; what
    the second adds is the answer's span, so no template needs to be known. Where the span has no EOS
    (templates that end a turn with another token) all of it is supervised.

    Raises:
        UsageError: The tokenizer has no chat template, or no EOS token.
        VlmkitError: The turns do not alternate, a text contains the image placeholder, or the template
            changes earlier text when a turn is added.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "the tokenizer has no chat template; choose the prompt plain or vicuna_v1, "
            "or set tokenizer.chat_template"
        )
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    spans = _spans(conversation, tokenizer)
    _check_slots(conversation, spans, tokenizer)
    return [s for text, weight in spans for s in split_text(text, image_token(tokenizer), weight)]


def _spans(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, float]]:
    """The rendered text in order, cut into (text, weight)."""
    spans: list[tuple[str, float]] = []
    done = ""
    for i, message in enumerate(conversation):
        if message.role == "assistant":
            answer = _added(done, conversation[: i + 1], tokenizer)
            done += answer
            end = answer.rfind(eos_token(tokenizer))
            cut = end + len(eos_token(tokenizer)) if end >= 0 else len(answer)
            spans += [(answer[:cut], message.weight), (answer[cut:], 0.0)]
        elif message.role == "user":
            prompt = _added(done, conversation[: i + 1], tokenizer, ask=True)
            done += prompt
            spans.append((prompt, 0.0))
    return spans


def _added(
    done: str, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, ask: bool = False
) -> str:
    """What rendering `messages` adds to the text rendered so far."""
    chat = [{"role": m.role, "content": join_parts(m.parts, image_token(tokenizer))} for m in messages]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask))
    except Exception as error:  # jinja2's errors are a stranger's: a template may raise what it likes
        raise VlmkitError(
            f"the chat template failed on roles {[m.role for m in messages]} "
            f"({type(error).__name__}: {error}); "
            "choose the prompt plain or vicuna_v1, or set another tokenizer.chat_template"
        ) from error
    if not text.startswith(done):
        raise VlmkitError(
            f"the chat template changes earlier text when message {len(messages) - 1} ({messages[-1].role}) "
            "is added, so the answers cannot be told apart; use one question per conversation, "
            "another template, or the prompt vicuna_v1"
        )
    return text[len(done) :]


def _check_slots(
    conversation: Conversation, spans: list[tuple[str, float]], tokenizer: PreTrainedTokenizerBase
) -> None:
    given = sum(part is IMAGE for m in conversation for part in m.parts)
    found = sum(text.count(image_token(tokenizer)) for text, _ in spans)
    if given != found:
        raise ImageSlotsError(
            f"the conversation has {given} images and the chat template renders {found} image placeholders; "
            "choose the prompt vicuna_v1, or set another tokenizer.chat_template"
        )
