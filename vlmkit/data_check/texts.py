"""What each token adds to the text: decoding tokens one by one would lose spaces and split characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that are decoded again in front of each one: spaces and characters depend on the last few only.
CONTEXT = 6
# What a decoder writes for bytes that are no whole character yet.
INCOMPLETE = "\ufffd"


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, image_id: int) -> list[str]:
    """The text that each token adds; empty for image tokens, and where the next one completes a character.

    Args:
        ids: Of a row.
        tokenizer: Its tokenizer.
        image_id: The placeholder of images.
    """
    texts: list[str] = []
    start = pending = 0
    for i, token in enumerate(ids):
        if token == image_id:
            texts.append("")
            start = pending = i + 1
            continue
        before = _decode(ids[start:pending], tokenizer)
        after = _decode(ids[start : i + 1], tokenizer)
        if after.endswith(INCOMPLETE) and i - pending < 3:
            texts.append("")
            continue
        # A decoder that changes what it wrote before is shown by the token alone.
        grown = after.startswith(before)
        texts.append(after[len(before) :] if grown else _decode(ids[pending : i + 1], tokenizer))
        start, pending = max(start, i + 1 - CONTEXT), i + 1
    return texts


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
