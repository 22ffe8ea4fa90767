"""Samples to batches: prompts, tokens, packing and pixels come together here."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from vlmkit.budget import Fit, SizedImage, unlimited
from vlmkit.data.augment import Augmenter
from vlmkit.data.batch import (
    Batch,
    RowImages,
    image_tensors,
    join_images,
    question_tensor,
    row_images,
    text_tensors,
)
from vlmkit.data.known_rows import KnownRows
from vlmkit.data.long_rows import group_rows, join_rows
from vlmkit.data.pack import PackedRow, pack_prefix
from vlmkit.data.problems import TokenBudgetError, TooLongError
from vlmkit.data.prompts import PromptFormat
from vlmkit.data.sample import IMAGE, Conversation, Sample
from vlmkit.data.tokens import (
    TokenRow,
    check_supervised,
    check_vocabulary,
    expand,
    question_ids,
    tokenize,
)
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts import Size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextRules:
    """How conversations become rows of tokens.

    Attributes:
        tokenizer: A fast one with a padding token, and the image token if there are images.
        prompt: From `PROMPTS`.
        count_tokens: Width, height and level of an image to its number of tokens.
        image_token_id: Id of the placeholder.
        eos_weight: Factor on the loss weight of the EOS of an answer.
        pack: `none`: each conversation is a row with its own copy of the images. `prefix`: all conversations
            of a sample share a row, see `pack_prefix`; where the images do not all lie in the shared prefix
            (each must be in the row once) the sample is stored as with `none`.
        pack_length: Rows of a micro-batch are laid one after another into rows of at most so many tokens; a
            longer one stays alone. None for a row each.
        max_length: Longest row in tokens, before rows come together; a longer one is an error.
        questions: Whether the connector reads the question, which is then given on its own.
        known: Rows that were tokenised before by these rules.
    """

    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat
    count_tokens: Callable[[SizedImage], int]
    image_token_id: int
    eos_weight: float = 1.0
    pack: Literal["none", "prefix"] = "none"
    pack_length: int | None = None
    max_length: int | None = None
    questions: bool = False
    known: KnownRows = field(default_factory=KnownRows, compare=False, repr=False)

    def __post_init__(self) -> None:
        alone = self.pack == "none" and self.pack_length is None
        assert not self.questions or alone, "check_fit refuses it: a row has one question"
        if self.tokenizer.pad_token_id is None:
            raise UsageError("the tokenizer has no padding token; set tokenizer.pad_token")


@dataclass(frozen=True)
class Prepared:
    """A sample that is ready for a batch.

    Attributes:
        sample: It.
        images: Pixels of its images.
        rows: Of its conversations; none for stages without text.
    """

    sample: Sample
    images: RowImages
    rows: list[PackedRow]


@dataclass(frozen=True)
class Collator:
    """Makes a `Batch` of (sample, epoch) pairs.

    The same pairs give the same batch, in any process and after a resume.

    Attributes:
        specs: How images become views, for each encoder.
        text: How conversations become tokens; None for stages without text, where each sample is one row.
        hflip: Probability that all images of a sample are mirrored.
        seed: Of the mirroring.
        fit: Keeps the token budget of a sample's images.
        augment: Changes images further; None for none.
    """

    specs: Sequence[VisionSpec]
    text: TextRules | None = None
    hflip: float = 0.0
    seed: int = 0
    fit: Fit = unlimited
    augment: Augmenter | None = None

    def __call__(self, items: Sequence[tuple[Sample, int]]) -> Batch:
        """Collate.

        Raises:
            VlmkitError: An image cannot be read, a conversation cannot be rendered, a text has special tokens
                or words outside the vocabulary, nothing is supervised, or a row is too long; the message
                names the sample.
        """
        return self.batch([self.prepare(sample, epoch) for sample, epoch in items])

    def prepare(self, sample: Sample, epoch: int) -> Prepared:
        """What one sample becomes, on its own.

        Raises:
            VlmkitError: See `__call__`.
        """
        pictures = self._images(sample, epoch)
        sizes = fitted(sample.id, [picture.size for picture in pictures], self.fit)
        rows = [] if self.text is None else sample_rows(sample, sizes, self.text)
        return Prepared(sample, row_images(pictures, sizes, self.specs), rows)

    def batch(self, items: Sequence[Prepared]) -> Batch:
        """Samples together."""
        copied = [item for item in items for _ in range(1 if self.text is None else len(item.rows))]
        rows, images = [row for item in items for row in item.rows], [item.images for item in copied]
        tensors: dict[str, Any] = {}
        if self.text is not None and self.text.pack_length is not None:
            groups = group_rows([len(row.ids) for row in rows], self.text.pack_length)
            copied = [copied[i] for group in groups for i in group]
            rows = [join_rows([rows[i] for i in group]) for group in groups]
            images = [join_images([images[i] for i in group], self.specs) for group in groups]
            tensors["image_counts"] = tuple(len(item.images.sizes) for item in copied)
        tensors |= image_tensors(images)
        if self.text is not None:
            tensors |= text_tensors(rows, self.text.tokenizer.pad_token_id)
        if self.text is not None and self.text.questions:
            conversations = [c for item in items for c in item.sample.conversations]
            tensors["question_ids_BQ"] = question_tensor(
                [question_ids(c, self.text.tokenizer) for c in conversations]
            )
        ids = tuple(item.sample.id for item in copied)
        captions = tuple(item.sample.captions for item in copied)
        sources = tuple(item.sample.source for item in copied)
        return Batch(ids, captions, **tensors, sources=sources)

    def _images(self, sample: Sample, epoch: int) -> list[Image.Image]:
        images = sample.open_images()
        # A hash of names rather than a random state: no order of samples or number of workers changes it.
        draw = zlib.crc32(f"{self.seed}/{epoch}/{sample.id}".encode()) / 2**32
        images = [ImageOps.mirror(image) for image in images] if draw < self.hflip else images
        return images if self.augment is None else self.augment(images, sample.id, epoch)


def fitted(sample_id: str, sizes: Sequence[Size], fit: Fit) -> list[SizedImage]:
    """The images of a sample within the token budget.

    Raises:
        TokenBudgetError: They cannot be made small enough; names the sample.
    """
    try:
        return fit(sizes)
    except VlmkitError as error:
        raise TokenBudgetError(f"sample {sample_id!r}: {error}") from None


def sample_rows(sample: Sample, sizes: Sequence[SizedImage], rules: TextRules) -> list[PackedRow]:
    """The rows of a sample with images of these sizes.

    Raises:
        VlmkitError: See `Collator`.
    """
    if not sample.conversations:
        raise VlmkitError(
            f"sample {sample.id!r} has no conversation; add one, or use an objective without text"
        )
    counts = [rules.count_tokens(size) for size in sizes]
    rows = [_token_row(sample.id, conversation, counts, rules) for conversation in sample.conversations]
    packed = [pack_prefix([row]) for row in rows]
    if rules.pack == "prefix":
        together = pack_prefix(rows)
        if together.ids.count(rules.image_token_id) == sum(counts):
            packed = [together]
    for row in packed:
        if rules.max_length is not None and len(row.ids) > rules.max_length:
            raise TooLongError(
                f"sample {sample.id!r} makes a row of {len(row.ids)} tokens and max_length is "
                f"{rules.max_length}; raise max_length, use pack: none, or shorten the sample"
            )
    return packed


def _token_row(
    sample_id: str, conversation: Conversation, counts: Sequence[int], rules: TextRules
) -> TokenRow:
    row = rules.known.get(conversation)
    try:
        if row is None:
            row = _new_row(conversation, rules)
            rules.known.put(conversation, row)
        row = expand(row, rules.image_token_id, counts)
    except VlmkitError as error:
        error.args = (f"sample {sample_id!r}: {error}",)
        raise
    check_supervised(row, sample_id)
    return row


def _new_row(conversation: Conversation, rules: TextRules) -> TokenRow:
    """One token an image, so that the row is the same for every connector and size of image."""
    segments = rules.prompt.render(conversation, rules.tokenizer)
    ones = [1] * sum(segment.part is IMAGE for segment in segments)
    row = tokenize(segments, rules.tokenizer, rules.image_token_id, ones, rules.eos_weight)
    check_vocabulary(conversation, rules.tokenizer, row.ids)
    return row


def prompt_batch(rows: Sequence[TokenRow], images: Sequence[RowImages], pad_id: int) -> dict[str, Tensor]:
    """Inputs of `generate`: ids and mask padded on the left, and the images' tensors if there are any.

    Args:
        rows: Prompts that end where the answer starts.
        images: The images of each row.
        pad_id: Id of the padding token.

    Returns:
        `input_ids` and `attention_mask` int64 (B, L); with images also `pixel_values` float32 (B, P) and
        `image_sizes` int64 (B, K, 3) as in `Batch`.
    """
    assert len(rows) == len(images) and rows
    length = max(len(row.ids) for row in rows)
    pads = [length - len(row.ids) for row in rows]
    return {
        "input_ids": torch.tensor([[pad_id] * n + list(row.ids) for n, row in zip(pads, rows)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (length - n) for n in pads]),
        **image_tensors(images),
    }
