"""Questions and images to model inputs, tokens to text: everything at the model's border, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoTokenizer

from vlmkit.config import VLMConfig, count_tokens, skeleton
from vlmkit.data.collate import prompt_batch
from vlmkit.data.prompts import PROMPTS, PromptFormat
from vlmkit.data.sample import Conversation
from vlmkit.data.tokens import tokenize, unknown_words
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit_connectors import Connector


class Processor:
    """Holds the tokenizer, the prompt format and what counting image tokens needs.

    Args:
        spec: The encoder's.
        connector: The connector; a copy on the meta device is enough.
        tokenizer: A fast tokenizer.
        prompt: How conversations become text.
        image_token_id: The placeholder.
    """

    def __init__(
        self,
        spec: VisionSpec,
        connector: Connector,
        tokenizer: Any,
        prompt: PromptFormat,
        image_token_id: int,
    ) -> None:
        self.spec = spec
        self.connector = connector
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.image_token_id = image_token_id

    @classmethod
    def from_config(cls, config: VLMConfig, tokenizer: Any) -> Processor:
        """For a model's configuration; loads no weights."""
        spec, connector = skeleton(config)
        assert config.image_token_id is not None
        return cls(spec, connector, tokenizer, PROMPTS[config.prompt["format"]], config.image_token_id)

    @classmethod
    def from_pretrained(cls, path: str | Path, config: VLMConfig | None = None, **hub: Any) -> Processor:
        """From a saved model's folder or hub id; `hub` says which revision and where, as in transformers."""
        config = config or VLMConfig.from_pretrained(path, **hub)
        return cls.from_config(config, AutoTokenizer.from_pretrained(path, **hub))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the tokenizer; the rest is in the model's configuration."""
        self.tokenizer.save_pretrained(path)

    def count_tokens(self, image_size: tuple[int, int]) -> int:
        """Image tokens for an image of (width, height) pixels."""
        return count_tokens(self.spec, self.connector, image_size)

    def __call__(
        self, conversations: Sequence[Conversation], images: Sequence[Sequence[Image.Image]]
    ) -> dict[str, Any]:
        """Left-padded inputs for `generate`, one row a conversation.

        Args:
            conversations: Each ends with the turn that is to be answered.
            images: The images of each conversation, in order of their slots.

        Raises:
            UsageError: A text has special tokens in it, or words that the model's vocabulary lacks.
        """
        rows = []
        for conversation, pictures in zip(conversations, images, strict=True):
            self._check_text(conversation)
            segments = self.prompt.render(conversation, self.tokenizer, generate=True)
            counts = [self.count_tokens(picture.size) for picture in pictures]
            rows.append(tokenize(segments, self.tokenizer, self.image_token_id, counts))
        return prompt_batch(rows, images, self.spec, self.tokenizer.pad_token_id)

    def _check_text(self, conversation: Conversation) -> None:
        for message in conversation:
            for token in self.tokenizer.all_special_tokens:
                if token in message.text:
                    raise UsageError(
                        f"the text contains the model's own token {token!r}; images are given as images, "
                        "leave the token out"
                    )
            unknown = unknown_words(message.text, self.tokenizer)
            if unknown:
                raise UsageError(
                    f"the model's vocabulary lacks: {', '.join(map(repr, unknown))}; "
                    "use words from its training data"
                )

    def decode(self, token_ids: Any) -> str:
        """Text of generated tokens, without special tokens."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return text.strip()
