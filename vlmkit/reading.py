"""How text and images become what the language model gets: the part of `VLM` between its parts.

Shapes: B rows, L tokens of a row, Q tokens of its question, D width of the language model, P numbers of a
row's pixels, K most images of a row, N image tokens of an image, W their width where blocks look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from vlmkit.data.batch import listed_images, pixel_batches
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.scales import image_features
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.sight import Read, Sight, see
from vlmkit.splice import Splice, streams
from vlmkit_connectors import Connector, Groups, LayerInjection, VisionFeatures


class Reading:
    """Mixed into `VLM`, which has the encoders, the connector and the language model's embeddings."""

    config: Any
    encoders: nn.ModuleList
    connector: Connector | Groups
    splice: Splice

    if TYPE_CHECKING:

        def get_input_embeddings(self) -> nn.Module:
            """The language model's."""

    @property
    def specs(self) -> list[VisionSpec]:
        """What the encoders state about themselves."""
        return [encoder.spec for encoder in self.encoders if isinstance(encoder, VisionEncoder)]

    @property
    def injection(self) -> LayerInjection | None:
        """The connector, where it has blocks inside the language model."""
        # Asked of the connector rather than of its class: PEFT's `modules_to_save` wraps it.
        return None if self.connector.in_sequence else cast(LayerInjection, self.connector)

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor) -> list[VisionFeatures]:
        """What each encoder sees in the images of a batch.

        Args:
            pixel_values: (B, P) as in `vlmkit.data.batch.Batch`.
            image_sizes: (B, K, 3).
        """
        batches = pixel_batches(pixel_values, image_sizes, self.specs)
        encoders = (cast(VisionEncoder, encoder) for encoder in self.encoders)
        return [image_features(encoder, batch) for encoder, batch in zip(encoders, batches, strict=True)]

    def image_tokens(
        self,
        features: Sequence[VisionFeatures],
        image_sizes: Tensor,
        questions: Sequence[Tensor] | None = None,
    ) -> list[list[Tensor]]:
        """The run of tokens (N, D) that each image of each row gives; (N, W) where blocks look at them.

        Args:
            features: From `encode_images`.
            image_sizes: (B, K, 3).
            questions: The question of each row (Q, D), for connectors that read it.
        """
        rows = listed_images(image_sizes)
        images = [image for row in rows for image in row]
        lanes = streams(self.specs, self.connector)
        taken = [features] if len(lanes) == 1 else [[own] for own in features]
        text = None
        if questions is not None:
            text = [question for question, row in zip(questions, rows, strict=True) for _ in row]
        runs = [self.splice(lane, own, images, text) for lane, own in zip(lanes, taken, strict=True)]
        each = iter([self.splice.join(parts) for parts in zip(*runs, strict=True)])
        return [[next(each) for _ in row] for row in rows]

    def read(
        self,
        input_ids: Tensor,
        features: Sequence[VisionFeatures] | None,
        image_sizes: Tensor | None,
        question_ids: Tensor | None = None,
        before: Sight | None = None,
        segments: Tensor | None = None,
    ) -> Read:
        """What the language model gets: text with its images.

        Args:
            input_ids: (B, L) with image placeholders.
            features: From `encode_images`; None without images.
            image_sizes: (B, K, 3).
            question_ids: (B, Q), -1 is padding; for connectors that read the question.
            before: What the text in the cache saw.
            segments: (B, L) which sample's row a token belongs to; None where each row is one sample's.

        Raises:
            VlmkitError: Placeholders and image tokens (or, where an image has one marker, images) of a row
                differ in number.
        """
        embeds_BLD: Tensor = self.get_input_embeddings()(input_ids)
        places_BL = input_ids == self.config.image_token_id
        rows: list[list[Tensor]] = [[] for _ in input_ids]
        if features is not None:
            assert image_sizes is not None
            rows = self.image_tokens(features, image_sizes, self._questions(question_ids))
        injection = self.injection
        given = [sum(map(len, row)) if injection is None else len(row) for row in rows]
        self._check_counts(places_BL.sum(1).tolist(), given)
        if injection is not None:
            marked_BLD = embeds_BLD + places_BL.unsqueeze(-1) * injection.marker_D
            return Read(marked_BLD.to(embeds_BLD), see(injection, places_BL, rows, before, segments))
        if features is None:
            return Read(embeds_BLD)
        tokens_ND = torch.cat([run for row in rows for run in row])
        return Read(embeds_BLD.masked_scatter(places_BL.unsqueeze(-1), tokens_ND.to(embeds_BLD)))

    def read_blank(
        self, input_ids: Tensor, blank: Sequence[VisionFeatures], size: Tensor, question_ids: Tensor | None
    ) -> Read:
        """Text without images that still touches every parameter an image would: another process has some.

        Args:
            input_ids: (B, L) without image placeholders.
            blank: Features of an image that nothing sees.
            size: (1, 1, 3), its size.
            question_ids: As in `read`.
        """
        read = self.read(input_ids, None, None, question_ids)
        first = None if question_ids is None else question_ids[:1]
        (runs,) = self.image_tokens(blank, size, self._questions(first))
        if self.injection is not None:
            none_BL = torch.zeros_like(input_ids, dtype=torch.bool)
            rows = [runs, *([] for _ in input_ids[1:])]
            return Read(read.embeds_BLD, see(self.injection, none_BL, rows))
        return Read(read.embeds_BLD + 0.0 * torch.cat(runs).sum().to(read.embeds_BLD))

    def _questions(self, question_ids: Tensor | None) -> list[Tensor] | None:
        """Embedded questions without padding, where the connector reads them.

        Raises:
            UsageError: It reads them, and they are not given.
        """
        if not self.connector.reads_text:
            return None
        if question_ids is None:
            raise UsageError(
                "this connector reads the question, and the inputs hold no question_ids; build them from "
                "messages (processor.apply_chat_template or VLM.ask)"
            )
        lengths = (question_ids >= 0).sum(1).tolist()
        embedded_BQD: Tensor = self.get_input_embeddings()(question_ids.clamp(min=0))
        return [row_QD[:length] for row_QD, length in zip(embedded_BQD, lengths, strict=True)]

    def read_embeddings(self, embeds_BLD: Tensor, before: Sight | None = None) -> Read:
        """Embeddings of text without new images."""
        if self.injection is None:
            return Read(embeds_BLD)
        none_BL = torch.zeros(embeds_BLD.shape[:2], dtype=torch.bool, device=embeds_BLD.device)
        return Read(embeds_BLD, see(self.injection, none_BL, [()] * len(embeds_BLD), before))

    @staticmethod
    def _check_counts(placeholders: list[int], given: list[int]) -> None:
        for row, (places, tokens) in enumerate(zip(placeholders, given, strict=True)):
            if places != tokens:
                raise VlmkitError(
                    f"row {row} has {places} image placeholders and its images need {tokens}; "
                    "build the inputs with this model's processor"
                )
