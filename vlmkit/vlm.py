"""The assembled model: a `transformers` model; generation, saving, PEFT and quantization are inherited.

Shapes: B rows, L tokens of a row, D width of the language model, P numbers of a row's pixels, K most images
of a row, N image tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmkit import inference
from vlmkit.budget import Budget, SizedImage
from vlmkit.config import VLMConfig, build_connector, build_encoder
from vlmkit.data.masks import additive, branch_mask, segment_bounds
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.inject import inject, seeing
from vlmkit.llm.attend import SEGMENTED
from vlmkit.llm.windows import layer_masks
from vlmkit.messages import ImageSource
from vlmkit.objectives import token_loss
from vlmkit.processor import Processor
from vlmkit.reading import Reading
from vlmkit.sight import Read, keep, recall
from vlmkit.splice import Marks, Splice, count_given, count_tokens, fit_images, streams

# What must be asked of the hub alike for weights and tokenizer.
HUB = ("revision", "token", "cache_dir", "local_files_only", "subfolder")


class VLM(Reading, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Vision encoders, a connector and a language model.

    Images enter in the Hugging Face placeholder layout: the sequence holds N copies of the image token id,
    and the connector's N tokens take their places.

    Args:
        config: What the model is made of.
        encoders: Loaded encoders; built with random weights from the configuration where absent.
        language_model: A loaded causal language model; likewise.
    """

    config_class = VLMConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: VLMConfig,
        encoders: Sequence[VisionEncoder] | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        built = encoders if encoders is not None else [build_encoder(e) for e in config.encoders]
        self.encoders = nn.ModuleList(built)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        # The same object, or resizing the embeddings would leave a stale vocabulary size behind.
        config.text_config = language_model.config
        self.language_model = language_model
        self.connector = build_connector(config, self.specs)
        lanes, marks = streams(self.specs, self.connector), Marks(**config.splice)
        self.splice = Splice(lanes, config.text_config.hidden_size, marks)
        if self.injection is not None:
            inject(language_model, self.injection)
        self._processor: Processor | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Tables only: modules initialise themselves when built, and loading refuses missing tensors.

        After `from_pretrained` a table that is not stored is uninitialised memory: it is always recomputed.
        """
        reset = getattr(module, "reset_buffers", None)
        if reset is not None:
            reset()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a run or a saved model with its processor; see `PreTrainedModel.from_pretrained`.

        Raises:
            VlmkitError: A tensor is missing, left over or of another shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        # Other shapes are refused below, by name and together with what else is wrong.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        _refuse_misfits(pretrained_model_name_or_path, info)
        hub = {name: kwargs[name] for name in HUB if name in kwargs}
        given = loaded.config if "config" in kwargs else None
        loaded._processor = Processor.from_pretrained(pretrained_model_name_or_path, given, **hub)
        return (loaded, info) if wants_info else loaded  # type: ignore[return-value]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and tokenizer; see `PreTrainedModel.save_pretrained`."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._processor is not None and kwargs.get("is_main_process", True):
            self._processor.save_pretrained(save_directory)

    @property
    def processor(self) -> Processor:
        """Turns questions and images into model inputs, and tokens into text."""
        if self._processor is None:
            raise VlmkitError(
                "this model has no processor; load it with VLM.from_pretrained, or set model.processor"
            )
        return self._processor

    @processor.setter
    def processor(self, processor: Processor) -> None:
        self._processor = processor

    @property
    def vision_encoder(self) -> VisionEncoder:
        """The (first) encoder."""
        return cast(VisionEncoder, self.encoders[0])

    @property
    def spec(self) -> VisionSpec:
        """What the first encoder states about itself."""
        return self.specs[0]

    def fit(self, sizes: Sequence[tuple[int, int]]) -> list[SizedImage]:
        """The images of one row within the token budget, see `Budget.fit`."""
        budget = Budget(**self.config.image_tokens)
        return fit_images(self.specs, self.connector, self.splice.marks, budget, sizes)

    def count_tokens(self, image_size: tuple[int, int]) -> int:
        """Image tokens for an image of (width, height) pixels, alone and within the token budget."""
        return count_tokens(self.specs, self.connector, self.splice.marks, self.fit([image_size])[0])

    def count_given(self, image_size: tuple[int, int]) -> int:
        """As `count_tokens`, but where blocks inside the language model look at tokens, those."""
        return count_given(self.specs, self.connector, self.splice.marks, self.fit([image_size])[0])

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the language model's."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return cast(nn.Module, self.language_model.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Set the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def decode(
        self, read: Read, branches: Tensor | None, segments: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """Run the language model.

        Args:
            read: Embeddings of text and images, and what blocks inside the language model see.
            branches: (B, L) restricts attention to a packed row's own branch; needs `position_ids`.
            segments: (B, L) restricts attention to a sample's own part of a row of several; needs `branches`.
            **kwargs: For the language model.

        Raises:
            UsageError: Packed rows with an attention that takes no mask of that form.
        """
        if branches is not None:
            kwargs |= self._attention(branches, segments, kwargs.get("position_ids"), read.embeds_BLD.dtype)
        injection, sight = self.injection, read.sight
        with seeing(injection, sight) if injection and sight else nullcontext():
            output: CausalLMOutputWithPast = self.language_model(inputs_embeds=read.embeds_BLD, **kwargs)
        if sight and output.past_key_values is not None:
            keep(output.past_key_values, sight)
        return output

    def _attention(
        self, branches: Tensor, segments: Tensor | None, positions: Tensor | None, dtype: torch.dtype
    ) -> dict[str, Any]:
        """What tells the language model's layers which token may look at which."""
        assert positions is not None, "a branch's positions restart at the prefix, a segment's at 0"
        config = self.language_model.config
        attention = config._attn_implementation
        if attention not in ("sdpa", "eager", SEGMENTED):
            raise UsageError(f"packed rows do not work with {attention!r} attention; use sdpa or eager")
        mask: Any = layer_masks(config, branch_mask(branches, segments), positions)
        if attention == "eager":
            # It adds the mask, and would silently misread a boolean one.
            by_kind = isinstance(mask, dict)
            mask = {k: additive(m, dtype) for k, m in mask.items()} if by_kind else additive(mask, dtype)
        if attention == SEGMENTED and segments is not None:
            return {"attention_mask": mask, "segment_bounds": segment_bounds(segments)}
        return {"attention_mask": mask}

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        question_ids: Tensor | None = None,
        branches: Tensor | None = None,
        segments: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass; images are looked at only when `pixel_values` is given: cached decoding steps skip them.

        Args:
            input_ids: (B, L) with image placeholders.
            pixel_values: (B, P) normalised pixels of each row's views, flat, as the processor gives them.
            image_sizes: (B, K, 3) width, height and level of each row's images; 0 is padding.
            inputs_embeds: (B, L, D) instead of `input_ids`, without images.
            attention_mask: (B, L), 0 on padding. Named here so that `generate` knows what a cache holds.
            position_ids: (B, L). Named here so that `generate` derives them from the mask: language models
                with absolute positions would count the padding on the left.
            past_key_values: What is cached; image placeholders need the pixels of their images with them.
            question_ids: (B, Q) tokens of each row's first question, -1 is padding, where connectors read it.
            branches: (B, L) branch of each token in prefix-packed rows: 0 the prefix, -1 padding.
            segments: (B, L) which sample's row a token belongs to, in rows of several; -1 padding.
            labels: (B, L), unshifted, -100 where nothing is supervised; gives a `loss`.
            loss_weights: (B, L) weight of each label; 1 where absent.
            **kwargs: For the language model: `use_cache`, `logits_to_keep`, ...
        """
        cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        before = recall(past_key_values, len(given)) if cached and self.injection is not None else None
        if inputs_embeds is not None:
            read = self.read_embeddings(inputs_embeds, before)
        else:
            features = None
            if pixel_values is not None and image_sizes is not None:
                features = self.encode_images(pixel_values, image_sizes)
            read = self.read(given, features, image_sizes, question_ids, before, segments)
        kept = {"position_ids": position_ids, "past_key_values": past_key_values}
        if attention_mask is not None:
            kept["attention_mask"] = attention_mask
        output = self.decode(read, branches, segments, **kept, **kwargs)
        if labels is not None:
            if loss_weights is None:
                loss_weights = torch.ones_like(labels, dtype=torch.float32)
            total, weight = token_loss(output.logits, labels, loss_weights)
            output.loss = total / weight
        return output

    def ask(self, image: ImageSource | Sequence[ImageSource] | None, question: str, **generation: Any) -> str:
        """Answer a question about one image, several, or none.

        Args:
            image: File or Pillow image, or a list of them.
            question: Plain text.
            **generation: For `generate`, e.g. `max_new_tokens`; decoding is greedy by default.

        Raises:
            VlmkitError: The image cannot be read, or the question has words or tokens the model cannot take.
        """
        images = [] if image is None else [image] if isinstance(image, ImageSource) else list(image)
        return inference.answer(self, [inference.question(images, question)], **generation)[0]

    def ask_each(self, images: Sequence[ImageSource], question: str, **generation: Any) -> list[str]:
        """The same question about each image on its own, in left-padded batches: one answer an image."""
        return inference.answer(
            self, [inference.question([image], question) for image in images], **generation
        )

    def chat(self, messages: Sequence[dict[str, Any]], **generation: Any) -> str:
        """Answer the last message of a conversation in the usual form.

        Args:
            messages: `{"role": "user", "content": [{"type": "image", "image": FILE}, {"type": "text",
                "text": ...}]}`, or a plain string as content.
            **generation: For `generate`.
        """
        return inference.answer(self, [inference.conversation(messages)], **generation)[0]

    def stream(
        self, image: ImageSource | Sequence[ImageSource] | None, question: str, **generation: Any
    ) -> Iterator[str]:
        """Like `ask`, piece by piece as the text is made."""
        images = [] if image is None else [image] if isinstance(image, ImageSource) else list(image)
        return inference.stream(self, inference.question(images, question), **generation)


def _refuse_misfits(path: Any, info: dict[str, Any]) -> None:
    """Raise with the names of tensors that a saved model lacks, has left over, or has in another shape."""
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        found = info[f"{kind}_keys"]
        names = sorted(key[0] if kind == "mismatched" else key for key in found)
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{kind} tensors {', '.join(names[:5])}{more}")
    if problems:
        raise VlmkitError(f"{path}: {'; '.join(problems)}; the weights do not belong to this config.json")
