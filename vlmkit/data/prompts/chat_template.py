"""The tokenizer's own chat template, with the assistant's spans found by rendering it.

No template needs to be known. An answer starts where the prompt for it (the messages before it, with the
generation prompt) ends. What a template writes behind an answer is seen by rendering a known word for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmkit.data.problems import ImageSlotsError
from vlmkit.data.sample import IMAGE, Conversation, Message
from vlmkit.data.segments import (
    Segment,
    check_text,
    check_turns,
    control_tokens,
    image_token,
    join_parts,
    split_text,
)
from vlmkit.errors import UsageError, VlmkitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "probe"
Write = Callable[..., str]  # messages, and `ask` for the generation prompt behind them


def render_chat(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """Render with `tokenizer.apply_chat_template`; supervised is each answer through its end-of-turn token.

    That is what the model has to write behind the generation prompt, so it includes what the template puts in
    front of an answer (an empty thinking block). Where text ends a turn, all of it is supervised.

    Raises:
        UsageError: The tokenizer has no chat template, or it writes nothing behind an answer.
        VlmkitError: The turns do not alternate, a text contains the image placeholder, or the template
            refuses the conversation or renders a supervised answer otherwise than its prompt and its answer.
    """
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    write = _writer(tokenizer)
    text = write(conversation, ask=generate)
    _check_slots(conversation, text, tokenizer)
    name, done = image_token(tokenizer), 0
    segments: list[Segment] = []
    for i, message in enumerate(conversation):
        if message.role != "assistant" or not message.weight:
            continue
        span = _span(text, conversation[: i + 1], write, tokenizer)
        if span is not None:
            segments += split_text(text[done : span[0]], name)
            segments += split_text(text[slice(*span)], name, message.weight)
            done = span[1]
        elif write(conversation, ask=generate) != text:  # it writes the date, and midnight has passed
            return render_chat(conversation, tokenizer, generate=generate)
        elif not generate:  # what was said before a question may be rendered in any way
            raise _untrainable(i, _tail(conversation[: i + 1], write))
    return segments + split_text(text[done:], name)


def chat_end(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that ends an answer, the last one if there are several in a row; None if text ends it.

    Raises:
        UsageError: No chat template, or it writes nothing behind an answer.
        VlmkitError: The template fails on one question and its answer.
    """
    tail = _tail((Message("user", ("question",)), Message("assistant", ("",))), _writer(tokenizer))
    if not tail.strip():
        raise _endless()
    end = tail[: _end_of_turn(tail, tokenizer)]
    return max((token for token in control_tokens(tokenizer) if end.endswith(token)), key=len, default=None)


def _writer(tokenizer: PreTrainedTokenizerBase) -> Write:
    """Renders messages."""
    if not tokenizer.chat_template:
        raise UsageError(
            "the tokenizer has no chat template; choose the prompt plain or vicuna_v1, "
            "or set tokenizer.chat_template"
        )

    def write(messages: Conversation, *, ask: bool = False) -> str:
        chat = [{"role": m.role, "content": join_parts(m.parts, image_token(tokenizer))} for m in messages]
        try:
            return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask))
        except Exception as error:  # jinja2's errors are a stranger's: a template may raise what it likes
            raise VlmkitError(_failed(messages, error)) from error

    return write


def _failed(messages: Conversation, error: Exception) -> str:
    advice = "choose the prompt plain or vicuna_v1, or set another tokenizer.chat_template"
    if messages[0].role == "system":
        advice = f"if it knows no system role, put that text in the first question; else {advice}"
    roles = [m.role for m in messages]
    return f"the chat template failed on roles {roles} ({type(error).__name__}: {error}); {advice}"


def _span(
    text: str, messages: Conversation, write: Write, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """Where the last of `messages` and its end stand in the text of the whole conversation.

    None where the text is not the prompt for that answer and then the answer.
    """
    prompt, alone, tail = write(messages[:-1], ask=True), write(messages), _tail(messages, write)
    end = len(alone) - len(tail) + _end_of_turn(tail, tokenizer)
    fits = tail.strip() and alone.startswith(prompt) and alone.endswith(tail) and text.startswith(alone[:end])
    return (len(prompt), end) if fits else None


def _tail(messages: Conversation, write: Write) -> str:
    """What the template writes behind the last message, an answer."""
    _, found, tail = write((*messages[:-1], Message("assistant", (PROBE,)))).rpartition(PROBE)
    if not found:
        raise VlmkitError("the chat template does not write the answer; set another tokenizer.chat_template")
    return tail


def _end_of_turn(tail: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Length of the part of a tail that ends the answer: through its first run of control tokens, or all."""
    tokens = "|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True)))
    found = re.search(f"(?:{tokens})+", tail) if tokens else None
    return found.end() if found else len(tail)


def _endless() -> UsageError:
    return UsageError(
        "the chat template writes nothing behind an answer, so the model would never learn to end it; "
        "let the template write an end token there, or choose the prompt vicuna_v1"
    )


def _untrainable(i: int, tail: str) -> VlmkitError:
    """Why message `i`, an answer, has no span."""
    if not tail.strip():
        return _endless()
    return VlmkitError(
        f"the chat template changes earlier text: message {i} (assistant) is not rendered as the prompt for "
        "it and then the answer (templates that drop or add thinking do so), so what is trained would not be "
        "what is generated; give earlier answers the weight 0 (a row for each answer), choose another "
        "template, or the prompt vicuna_v1"
    )


def _check_slots(conversation: Conversation, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    given = sum(part is IMAGE for m in conversation for part in m.parts)
    found = text.count(image_token(tokenizer))
    if given != found:
        raise ImageSlotsError(
            f"the conversation has {given} images and the chat template renders {found} image placeholders; "
            "choose the prompt vicuna_v1, or set another tokenizer.chat_template"
        )
