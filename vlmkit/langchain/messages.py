"""LangChain's messages to the conversation that a VLM answers, with nothing dropped silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from PIL import Image

from vlmkit.data.problems import SpecialTokenError
from vlmkit.data.sample import IMAGE, Message, Part
from vlmkit.data.segments import control_tokens
from vlmkit.errors import UsageError
from vlmkit.langchain.blocks import Fetch, block_image, refused_block
from vlmkit.messages import Query

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def read_query(messages: Sequence[BaseMessage], tokenizer: Any, fetch: Fetch | None = None) -> Query:
    """Messages that wait for an answer; neighbours of one role become one turn, a line each.

    Args:
        messages: Text and images, see `block_image`; a message's `name` and `id` are not told to the model.
        tokenizer: Of the model.
        fetch: Gives the bytes behind an http(s) address.

    Raises:
        VlmkitError: A message holds something else than text and images, an image cannot be read, a text
            holds control tokens, or the last message is not the user's.
    """
    turns: list[Message] = []
    images: list[Image.Image] = []
    for number, message in enumerate(messages):
        where = f"message {number} ({message.type})"
        role = _role(message, where)
        parts = read_parts(message, where, fetch)
        images += [part for part in parts if isinstance(part, Image.Image)]
        turn = Message(role, tuple(part if isinstance(part, str) else IMAGE for part in parts))
        if turns and turns[-1].role == role:
            turn = _joined(turns.pop(), turn)
        turns.append(turn)
    asked = turns[-1].parts if turns and turns[-1].role == "user" else ()
    if not any(part is IMAGE or str(part).strip() for part in asked):
        raise UsageError("the last message must be the user's, with text or an image; there is no question")
    for turn in turns:
        _refuse_control(turn, tokenizer)
    return Query(tuple(turns), tuple(images))


def _role(message: BaseMessage, where: str) -> Role:
    if isinstance(message, ToolMessage | FunctionMessage) or (
        isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls)
    ):
        raise UsageError(f"{where}: this model calls no tools, and reads neither tool calls nor results")
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, ChatMessage) and message.role in ROLES:
        return ROLES[message.role]
    role = getattr(message, "role", message.type)
    raise UsageError(f"{where}: the role {role!r} is not possible (known: {', '.join(ROLES)})")


def read_parts(message: BaseMessage, where: str, fetch: Fetch | None) -> list[str | Image.Image]:
    """The texts and images of a message, in order.

    Raises:
        VlmkitError: It holds something else, or an image cannot be read.
    """
    items = [message.content] if isinstance(message.content, str) else message.content
    return [part for item in items if (part := _part(item, where, fetch)) != ""]


def _part(item: Any, where: str, fetch: Fetch | None) -> str | Image.Image:
    if isinstance(item, str):
        return item
    if item.get("type") == "text" and isinstance(item.get("text"), str):
        return str(item["text"])
    image = block_image(item, where, fetch)
    if image is None:
        raise refused_block(item, where)
    return image


def _joined(first: Message, second: Message) -> Message:
    between: tuple[Part, ...] = ()
    if first.parts and second.parts and isinstance(first.parts[-1], str) and isinstance(second.parts[0], str):
        between = ("\n",)
    return Message(first.role, (*first.parts, *between, *second.parts))


def _refuse_control(turn: Message, tokenizer: Any) -> None:
    """Refuse text that becomes control tokens, however it is written.

    The model's own checks look for their names. A tokenizer that normalises text first also makes them of
    other letters (a full-width `＜image＞` under NFKC), so here its own tokens are looked at.
    """
    names = set(control_tokens(tokenizer))
    ids = set(tokenizer.convert_tokens_to_ids(list(names)))
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        ids.discard(tokenizer.unk_token_id)  # a word that the vocabulary lacks, which is told by its name
    for text in [*turn.texts, turn.text]:
        found = ids & set(tokenizer(text, add_special_tokens=False)["input_ids"])
        if found:
            token = tokenizer.convert_ids_to_tokens(min(found))
            raise SpecialTokenError(
                f"the {turn.role}'s text contains the tokenizer's special token {token!r}; "
                "remove it (images are given as images)"
            )
