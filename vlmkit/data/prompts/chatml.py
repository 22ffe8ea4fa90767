"""ChatML as LLaVA-NeXT trains Qwen with it.

Source: github.com/LLaVA-VL/LLaVA-NeXT, `llava/conversation.py` (`conv_qwen`) and `llava/train/train.py`
(`preprocess_multimodal`, `preprocess_qwen`). What differs: there every newline, `<|im_start|>` and
`<|im_end|>` is supervised, in the user's turns too, and the assistant's header. Here it is the answer and its
`<|im_end|>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmkit.data.sample import IMAGE, Conversation, Message
from vlmkit.data.segments import Segment, check_text, check_turns, split_system
from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You are a helpful assistant."
START, END = "<|im_start|>", "<|im_end|>"


def chatml(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, generate: bool = False
) -> list[Segment]:
    """`<|im_start|>role\\ntext<|im_end|>\\n` for each message; supervised is `answer<|im_end|>`.

    Raises:
        UsageError: The tokenizer has no such tokens; a model could not end its answer with one.
    """
    check_turns(conversation, generate=generate)
    check_text(conversation, tokenizer)
    end = chatml_end(tokenizer)
    system, turns = split_system(conversation, SYSTEM)
    segments = [Segment(f"{START}system\n{system}{end}\n")]
    for message in turns:
        if message.role == "user":
            segments += [Segment(f"{START}user\n"), *_user_turn(message)]
            segments.append(Segment(f"{end}\n{START}assistant\n"))
        else:
            segments += [Segment(f"{message.text}{end}", message.weight), Segment("\n")]
    return segments


def chatml_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """`<|im_end|>`.

    Raises:
        UsageError: The tokenizer does not have it and `<|im_start|>`.
    """
    vocabulary = tokenizer.get_added_vocab()
    missing = [token for token in (START, END) if token not in vocabulary]
    if missing:
        raise UsageError(
            f"the prompt chatml needs the token {' and '.join(missing)}, which the tokenizer does not have; "
            "choose chat_template or vicuna_v1"
        )
    return END


def _user_turn(message: Message) -> list[Segment]:
    """Images where they are; but a turn's only image goes to its front, on a line of its own."""
    text = message.text.strip()
    if message.parts.count(IMAGE) == 1 and message.parts[0] is not IMAGE:
        return [Segment(IMAGE), Segment(f"\n{text}")] if text else [Segment(IMAGE)]
    return [Segment(part) for part in message.parts if part]
