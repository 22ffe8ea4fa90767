"""The prompt formats of LLaVA 1 and 1.5.

Source: github.com/haotian-liu/LLaVA, `llava/conversation.py` (`conv_llava_plain`, `conv_vicuna_v1`,
`conv_llava_llama_2`) and `llava/train/train.py` (`preprocess_plain`, `preprocess_multimodal`,
`preprocess_v1`, `preprocess_llama_2`). What differs: every image of a turn is kept (there, several in one
turn become one), an empty answer still ends with EOS, and no sample is masked as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmkit.data.sample import IMAGE, Conversation, Message
from vlmkit.data.segments import Segment, check_text, check_turns, eos_token, split_system
from vlmkit.errors import UsageError, VlmkitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


def plain(
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


def vicuna_v1(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """`SYSTEM USER: question ASSISTANT: answer</s>USER: ...`; supervised is ` answer</s>`."""
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    system, turns = split_system(conversation, VICUNA_SYSTEM)
    segments = [Segment(f"{system} ")]
    for message in turns:
        if message.role == "user":
            segments += [Segment("USER: "), *_user_turn(message), Segment(" ASSISTANT:")]
        else:
            # The space in front belongs to the answer: sentencepiece and byte-level vocabularies put it in
            # the answer's first token, and the prompt must end where that token starts.
            segments.append(Segment(f" {message.text}{eos_token(tokenizer)}", message.weight))
    return segments


def llama_2(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """`[INST] <<SYS>>..<</SYS>>\\n\\nquestion [/INST] answer </s><s>[INST] ...`.

    Supervised is ` answer </s>`, with the spaces around the answer.

    Raises:
        UsageError: The tokenizer has no BOS, which separates rounds, or no EOS.
    """
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    system, turns = split_system(conversation, LLAMA_2_SYSTEM)
    # The first round's BOS is the tokenizer's to add, as it is for every format.
    before, bos = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n", _bos_token(tokenizer)
    segments: list[Segment] = []
    for message in turns:
        if message.role == "user":
            segments += [Segment(before), *_user_turn(message), Segment(" [/INST]")]
            before = f"{bos}[INST] "
        else:
            segments.append(Segment(f" {message.text} {eos_token(tokenizer)}", message.weight))
    return segments


def _bos_token(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.bos_token is None:
        raise UsageError(
            "the prompt llama_2 writes BOS before each round and the tokenizer has none; "
            "choose chatml or chat_template, or set tokenizer.bos_token"
        )
    return str(tokenizer.bos_token)


def _user_turn(message: Message) -> list[Segment]:
    """The turn's images go to its front, a newline after each, and the text is stripped (LLaVA 1.5)."""
    images = sum(part is IMAGE for part in message.parts)
    if not images:
        return [Segment(message.text)]
    lines: list[Segment] = [Segment(IMAGE), Segment("\n")] * images
    text = message.text.strip()
    return [*lines, Segment(text)] if text else lines[:-1]
