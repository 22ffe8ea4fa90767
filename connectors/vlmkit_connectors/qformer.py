"""BLIP-2's Q-Former: learned queries look at the patches of a view, and at the question if asked to.

Shapes: I views, N patches of the longest, Q queries, L tokens of the longest question, S queries and
question, W width of the Q-Former, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_divides, check_sizes, check_unused
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.qformer_layer import EPS, QFormerLayer
from vlmkit_connectors.views import map_padded, pad

INIT_STD = 0.02
# BERT's places.
MAX_QUESTION = 512


class QFormerConnector(Connector):
    """Learned queries through BERT's layers, some with cross-attention to the patches, then a linear layer.

    Published with `depth=12, heads=12, width=768` (Li et al. 2023). With `question`, the question goes with
    the queries through self-attention, as in InstructBLIP (Dai et al. 2023,
    https://arxiv.org/abs/2305.06500); only the queries look at the patches, and only they come out. The
    question is what the language model embeds: a linear layer stands in place of BERT's table of words.

    There is no dropout (0.1 there), and the last layer's feed-forward for the question, whose output is not
    used there, is left out. Queries and places begin with deviation 0.02, all else as torch's layers do.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        num_queries: Tokens a view.
        depth: Layers.
        heads: Attention heads.
        width: Width of queries and layers; absent, the vision width.
        cross_every: The first layer and each `cross_every`-th after it look at the patches.
        question: Whether the queries see the question of their image.
        max_question: Longest question, in tokens; absent, 512. Without `question` it is refused.
        ff_mult: Feed-forward layers are this many times as wide as the queries.

    Raises:
        ValueError: A size is below 1, heads do not divide the width, or `max_question` has no question.
    """

    source = "BLIP-2, https://arxiv.org/abs/2301.12597"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        num_queries: int = 32,
        depth: int = 6,
        heads: int = 8,
        width: int | None = None,
        cross_every: int = 2,
        question: bool = False,
        max_question: int | None = None,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        seen = sum(vision_widths)
        width = seen if width is None else width
        check_sizes("qformer", num_queries=num_queries, depth=depth, heads=heads, width=width)
        check_sizes("qformer", cross_every=cross_every, max_question=max_question, ff_mult=ff_mult)
        check_divides("qformer", "heads", "width", heads=heads, width=width)
        self.reads_text = question
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.words, self.places = None, None
        if question:
            self.words = nn.Linear(text_width, width)
            longest = MAX_QUESTION if max_question is None else max_question
            self.places = nn.Parameter(torch.empty(longest, width))
        else:
            check_unused("qformer", "question=True", max_question=max_question)
        self.norm = nn.LayerNorm(width, EPS)
        layers = []
        for i in range(depth):
            looks = seen if i % cross_every == 0 else None
            layers.append(QFormerLayer(width, heads, ff_mult * width, looks, question and i < depth - 1))
        self.layers = nn.ModuleList(layers)
        self.project = nn.Linear(width, text_width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Queries and places from a normal distribution of deviation 0.02."""
        self.queries.normal_(std=INIT_STD)
        if self.places is not None:
            self.places.normal_(std=INIT_STD)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"num_queries": 4, "depth": 2, "heads": 2, "width": 16}

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`: the number of queries for any grid."""
        return len(self.queries)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is looked at where `question` is set.

        Raises:
            ValueError: There is not one question an image, or one is longer than `max_question`.
        """
        fused = concat_encoders(features)
        questions = self._questions(text, fused) if self.reads_text else []
        seen = map_padded(fused, partial(self._look, questions=questions))
        return ImageTokens(self.project(seen.tokens_ND), seen.counts)

    def _questions(self, text: Questions | None, features: VisionFeatures) -> list[Tensor]:
        """The question of each view, (L, W) each: that of its image."""
        owners = features.image_of_view_I.tolist()
        images = max(owners, default=-1) + 1
        if text is None or len(text) != images:
            found = "no" if text is None else len(text)
            raise ValueError(
                f"qformer connector: found {found} questions for {images} images; give one an image, or "
                "question=False"
            )
        assert self.words is not None and self.places is not None
        longest, table = max(map(len, text), default=0), len(self.places)
        if longest > table:
            raise ValueError(
                f"qformer connector: found a question of {longest} tokens and max_question={table}; give a "
                f"shorter one, or max_question={longest}"
            )
        embedded = _embed(text, self.words, self.places) if text else []
        return [embedded[image] for image in owners]

    def _look(
        self, views: list[int], patches_INV: Tensor, mask_IN: Tensor | None, questions: list[Tensor]
    ) -> Tensor:
        """Queries (I, Q, W) that have looked at their views and, if there are any, their questions."""
        hidden_ISW: Tensor = self.queries.expand(len(views), -1, -1)
        mask_IS = None
        if questions:
            text_ILW, mask_IS = pad([questions[i] for i in views])
            hidden_ISW = torch.cat([hidden_ISW, text_ILW], 1)
        if mask_IS is not None:
            mask_IS = F.pad(mask_IS, (len(self.queries), 0), value=True)
        hidden_ISW = self.norm(hidden_ISW)
        for layer in self.layers:
            hidden_ISW = layer(hidden_ISW, mask_IS, patches_INV, mask_IN, queries=len(self.queries))
        return hidden_ISW


def _embed(text: Questions, words: nn.Linear, places: Tensor) -> list[Tensor]:
    """Questions (L, D) to (L, W), all of them together; one that several images share only once."""
    own = {id(own_LD): own_LD for own_LD in text}
    lengths = list(map(len, own.values()))
    places_NW = torch.cat([places[:length] for length in lengths])
    embedded = (words(torch.cat(list(own.values()))) + places_NW).split(lengths)
    of = dict(zip(own, embedded, strict=True))
    return [of[id(own_LD)] for own_LD in text]
