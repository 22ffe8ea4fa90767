"""Prompt formats: how a conversation becomes text, which of it is supervised, and where an answer ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vlmkit.data.prompts.chat_template import chat_end, render_chat
from vlmkit.data.prompts.chatml import chatml, chatml_end
from vlmkit.data.prompts.llava import VICUNA_SYSTEM, llama_2, plain, vicuna_v1
from vlmkit.data.sample import Conversation
from vlmkit.data.segments import Segment, eos_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROMPTS", "VICUNA_SYSTEM", "PromptFormat", "Render", "Segment"]


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
        end: The token that ends an answer, where generation has to stop; None if text ends it.
    """

    render: Render
    summary: str
    end: Callable[[PreTrainedTokenizerBase], str | None] = eos_token


PROMPTS: dict[str, PromptFormat] = {
    "plain": PromptFormat(plain, "image, caption, newline; the question is discarded (LLaVA stage 1)"),
    "vicuna_v1": PromptFormat(vicuna_v1, "system sentence, USER and ASSISTANT turns (LLaVA 1.5 stage 2)"),
    "llama_2": PromptFormat(llama_2, "[INST] and <<SYS>>, BOS before each round (LLaVA with Llama 2 Chat)"),
    "chatml": PromptFormat(chatml, "<|im_start|> and <|im_end|> (LLaVA-NeXT with Qwen)", chatml_end),
    "chat_template": PromptFormat(render_chat, "the tokenizer's own chat template", chat_end),
}
