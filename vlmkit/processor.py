"""Questions and images to model inputs, tokens to text: everything at the model's border, no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from vlmkit.budget import Budget, SizedImage
from vlmkit.config import VLMConfig, skeleton
from vlmkit.data.batch import question_tensor
from vlmkit.data.collate import prompt_batch
from vlmkit.data.prompts import PROMPTS, PromptFormat
from vlmkit.data.sample import IMAGE, Conversation
from vlmkit.data.segments import Segment, image_token, join_parts, split_text
from vlmkit.data.tokens import check_vocabulary, check_words, question_ids, tokenize
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.image_processor import Images, VLMImageProcessor, check_options, deal_images
from vlmkit.messages import read_messages, read_sources
from vlmkit.splice import Marks, count_tokens, fit_images
from vlmkit_connectors import Connector, Groups


class Processor(ProcessorMixin):  # type: ignore[misc]
    """A `transformers` processor that renders by the model's prompt format and counts image tokens.

    Text, messages and conversations all become segments, and segments become inputs in one place. Inputs are
    torch tensors, padded on the left.

    Args:
        image_processor: With the encoders' specs.
        tokenizer: A fast tokenizer.
        connector: The connector; a copy on the meta device is enough.
        prompt: How conversations become text.
        image_token_id: The placeholder.
        budget: Most image tokens.
        marks: Learned tokens among them.
    """

    def __init__(
        self,
        image_processor: VLMImageProcessor,
        tokenizer: Any,
        connector: Connector | Groups,
        prompt: PromptFormat,
        image_token_id: int,
        budget: Budget = Budget(),  # noqa: B008 - frozen
        marks: Marks = Marks(),  # noqa: B008 - frozen
    ) -> None:
        self.tokenizer = tokenizer
        super().__init__(image_processor, tokenizer, chat_template=tokenizer.chat_template)
        self.connector = connector
        self.prompt = prompt
        self.image_token = image_token(tokenizer)
        self.image_token_id = image_token_id
        self.budget = budget
        self.marks = marks
        image_processor.fit = self.fit
        # By this a pipeline with a batch size pads its rows.
        tokenizer.padding_side = "left"

    @classmethod
    def from_config(cls, config: VLMConfig, tokenizer: Any) -> Processor:
        """For a model's configuration; loads no weights."""
        specs, connector = skeleton(config)
        assert config.image_token_id is not None
        prompt, images = PROMPTS[config.prompt["format"]], VLMImageProcessor(specs)
        budget, marks = Budget(**config.image_tokens), Marks(**config.splice)
        return cls(images, tokenizer, connector, prompt, config.image_token_id, budget, marks)

    @classmethod
    def from_pretrained(cls, path: str | Path, config: VLMConfig | None = None, **hub: Any) -> Processor:
        """From a saved model's folder or hub id; `hub` says which revision and where, as in transformers.

        All is rebuilt from the model's `config.json`; a folder without `processor_config.json` loads as well.
        A `config` that is given takes the place of the stored one, so what is stored is not compared with it.

        Raises:
            VlmkitError: `processor_config.json` says something else.
        """
        tokenizer = AutoTokenizer.from_pretrained(path, **hub)
        if config is not None:
            return cls.from_config(config, tokenizer)
        processor = cls.from_config(VLMConfig.from_pretrained(path, **hub), tokenizer)
        stored, _ = cls.get_processor_dict(path, **hub)
        processor._check_stored(path, stored.get("image_processor", {}))
        return processor

    def _check_stored(self, path: str | Path, stored: dict[str, Any]) -> None:
        stated = json.loads(self.to_json_string())["image_processor"]["specs"]
        if len(stored.get("specs", stated)) != len(stated):
            raise VlmkitError(
                f"{path}: processor_config.json has {len(stored['specs'])} encoders, config.json has "
                f"{len(stated)}; remove processor_config.json, saving writes it anew"
            )
        for found, own in zip(stored.get("specs", stated), stated, strict=True):
            for name in sorted(found.keys() & own.keys()):
                if found[name] != own[name]:
                    raise VlmkitError(
                        f"{path}: processor_config.json has {name} {found[name]!r}, the encoder in "
                        f"config.json has {own[name]!r}; remove processor_config.json, saving writes it anew"
                    )

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds: for tools that look for it; the rest is in `config.json`."""
        return {"processor_class": type(self).__name__, "image_processor": self.image_processor.to_dict()}

    @property
    def chat_template(self) -> Any:
        """The tokenizer's; there is no second one."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        self.tokenizer.chat_template = template

    @property
    def specs(self) -> list[VisionSpec]:
        """What the encoders state about themselves."""
        specs: list[VisionSpec] = self.image_processor.specs
        return specs

    def fit(self, sizes: Sequence[tuple[int, int]]) -> list[SizedImage]:
        """The images of one row within the token budget, see `Budget.fit`."""
        return fit_images(self.specs, self.connector, self.marks, self.budget, sizes)

    def count_tokens(self, image_size: tuple[int, int]) -> int:
        """Image tokens for an image of (width, height) pixels, alone and within the token budget."""
        return self.count_fitted(self.fit([image_size])[0])

    def count_fitted(self, image: SizedImage) -> int:
        """Image tokens for an image of `fit`, see `splice.count_tokens`."""
        return count_tokens(self.specs, self.connector, self.marks, image)

    def __call__(
        self, images: Images = None, text: str | Sequence[str] | None = None, **options: Any
    ) -> BatchFeature:
        """Rendered prompts with one image placeholder an image to inputs of `generate`.

        Args:
            images: Files or Pillow images: one, a flat list dealt to the texts in order, or a list a text.
            text: One or several, complete with what `apply_chat_template(..., tokenize=False)` writes.
            **options: Only what changes nothing, see `check_options`.

        Raises:
            UsageError: Placeholders and images differ in number, the vocabulary lacks a word, or an option is
                not possible.
        """
        check_options(options)
        if self.connector.reads_text:
            raise UsageError(
                "this model's connector reads the question, which cannot be told from rendered text; call "
                "apply_chat_template(messages, tokenize=True, return_dict=True), or VLM.ask"
            )
        if not text:
            raise UsageError("text is needed; for pixels alone call processor.image_processor(images)")
        prompts = [split_text(t, self.image_token) for t in ([text] if isinstance(text, str) else text)]
        texts = (join_parts((s.part for s in segments if s.part is not IMAGE), "") for segments in prompts)
        check_words(texts, self.tokenizer)
        slots = [sum(s.part is IMAGE for s in segments) for segments in prompts]
        return self._inputs(prompts, deal_images(images, slots))

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Messages to text or to inputs, by the model's prompt format.

        Args:
            conversation: Messages in the form of `VLM.chat`, or several such lists.
            chat_template: Not possible; set the tokenizer's.
            add_generation_prompt: End where the assistant's answer starts.
            tokenize: Give inputs; without, text with one placeholder for each image.
            return_dict: With `tokenize`: all inputs of `generate`, not `input_ids` alone.
            processor_kwargs: As `options`.
            **options: Only what changes nothing, see `check_options`.

        Raises:
            VlmkitError: The messages have another form, an image is not given, or an option is not possible.
        """
        check_options({**options, **(processor_kwargs or {}), "chat_template": chat_template})
        single = not conversation or isinstance(conversation[0], dict)
        read = [read_messages(messages) for messages in ([conversation] if single else conversation)]
        prompts = [self._render(turns, add_generation_prompt) for turns, _ in read]
        if not tokenize:
            texts = [join_parts((s.part for s in segments), self.image_token) for segments in prompts]
            return texts[0] if single else texts
        images = [read_sources(sources) for _, sources in read]
        inputs = self._inputs(prompts, images, [turns for turns, _ in read])
        return inputs if return_dict else inputs["input_ids"]

    def prompts(
        self, conversations: Sequence[Conversation], images: Sequence[Sequence[Image.Image]]
    ) -> BatchFeature:
        """Left-padded inputs for `generate`, one row a conversation.

        Args:
            conversations: Each ends with the turn that is to be answered.
            images: The images of each conversation, in order of their slots.

        Raises:
            UsageError: A text has special tokens in it, or words that the model's vocabulary lacks.
        """
        return self._inputs([self._render(turns, True) for turns in conversations], images, conversations)

    def _render(self, turns: Conversation, generate: bool) -> list[Segment]:
        check_vocabulary(turns, self.tokenizer)
        if turns and turns[-1].role == "user" and not generate:
            raise UsageError("the last message is the user's; pass add_generation_prompt=True")
        return self.prompt.render(turns, self.tokenizer, generate=generate)

    def _inputs(
        self,
        prompts: Sequence[Sequence[Segment]],
        images: Sequence[Sequence[Image.Image]],
        conversations: Sequence[Conversation] = (),
    ) -> BatchFeature:
        seen = [self.image_processor.row(own) for own in images]
        rows = [
            tokenize(segments, self.tokenizer, self.image_token_id, list(map(self.count_fitted, own.sizes)))
            for segments, own in zip(prompts, seen, strict=True)
        ]
        inputs = prompt_batch(rows, seen, self.tokenizer.pad_token_id)
        if self.connector.reads_text:
            inputs["question_ids"] = question_tensor([question_ids(c, self.tokenizer) for c in conversations])
        return BatchFeature(inputs)
