"""What blocks inside the language model see: which image tokens, and for which text token.

Shapes: B rows, L text tokens, M most image tokens of a row, W their width, N tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vlmkit.errors import VlmkitError
from vlmkit_connectors import LayerInjection, Memory

# The tokens (N, W) of each image of each row.
Rows = tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class Windows:
    """The images that text tokens see, by their numbers in the row; one token that sees none is before all.

    Attributes:
        first_BL: The first image that each text token sees.
        stop_BL: The image after the last one that it sees; none is seen where it is not above the first.
        marker_BL: bool; which text tokens are markers.
    """

    first_BL: Tensor
    stop_BL: Tensor
    marker_BL: Tensor

    @property
    def length(self) -> int:
        """Number of text tokens, without the one before them."""
        return self.marker_BL.shape[1] - 1

    def until(self, length: int) -> Windows:
        """Of the first text tokens."""
        stop = length + 1
        return Windows(self.first_BL[:, :stop], self.stop_BL[:, :stop], self.marker_BL[:, :stop])

    def then(self, marker_BL: Tensor, run: bool, segments_BL: Tensor | None = None) -> Windows:
        """With further text.

        Args:
            marker_BL: bool; the further tokens that are markers.
            run: Whether all images count whose markers stand side by side, up to the token itself; else the
                last one.
            segments_BL: Which sample's row a token belongs to: it sees no image of another's. None where each
                row is one sample's.
        """
        stop_BL = self.stop_BL[:, -1:] + marker_BL.long().cumsum(1)
        first_BL = (stop_BL - 1).clamp(min=0)
        if run:
            starts_BL = marker_BL & ~torch.cat([self.marker_BL[:, -1:], marker_BL[:, :-1]], dim=1)
            first_BL = torch.where(starts_BL, first_BL, 0).cummax(1).values
            first_BL = torch.maximum(first_BL, self.first_BL[:, -1:])
        if segments_BL is not None:
            first_BL = torch.maximum(first_BL, _before_segment(marker_BL, segments_BL))
        new = ((self.first_BL, first_BL), (self.stop_BL, stop_BL), (self.marker_BL, marker_BL))
        return Windows(*(torch.cat(parts, dim=1) for parts in new))

    @classmethod
    def start(cls, rows: int, device: torch.device) -> Windows:
        """Of no text."""
        none_B1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        return cls(none_B1, none_B1, none_B1.bool())


def _before_segment(marker_BL: Tensor, segments_BL: Tensor) -> Tensor:
    """(B, L): how many markers come before the segment that a token belongs to."""
    before_BL = marker_BL.long().cumsum(1) - marker_BL.long()
    starts_BL = F.pad(segments_BL[:, 1:] != segments_BL[:, :-1], (1, 0))
    return torch.where(starts_BL, before_BL, 0).cummax(1).values


@dataclass(frozen=True)
class Sight:
    """The images of a batch as the blocks of a `LayerInjection` see them.

    It is kept beside the cache while text is generated, so that keys and values are computed once.

    Attributes:
        memory: Keys and values by the number of the decoder layer.
        images: The tokens (N, W) of each image, row by row.
        image_of_BM: Number of the image, in its row, that a token belongs to; -1 is padding.
        windows: Of all text so far, that in the cache too.
        new: Tokens of text at the end that this pass reads.
    """

    memory: dict[int, Memory]
    images: Rows
    image_of_BM: Tensor
    windows: Windows
    new: int

    @cached_property
    def seen_BLM(self) -> Tensor:
        """bool: which image tokens each text token of this pass may look at."""
        first_BL, stop_BL = self.windows.first_BL[:, -self.new :], self.windows.stop_BL[:, -self.new :]
        image_B1M = self.image_of_BM[:, None]
        return (image_B1M >= first_BL[..., None]) & (image_B1M < stop_BL[..., None])

    def until(self, length: int) -> Sight:
        """What the first `length` text tokens saw, with the images whose markers are among them."""
        if length == self.windows.length:
            return self
        windows = self.windows.until(length)
        counts = windows.stop_BL[:, -1].tolist()
        images = tuple(own[:count] for own, count in zip(self.images, counts, strict=True))
        return replace(self, windows=windows, images=images)


@dataclass(frozen=True)
class Read:
    """What the language model gets.

    Attributes:
        embeds_BLD: Embeddings of text and, where image tokens are in the sequence, of images.
        sight: What the blocks of a `LayerInjection` see; None without one.
    """

    embeds_BLD: Tensor
    sight: Sight | None = None


def see(
    injection: LayerInjection,
    marker_BL: Tensor,
    images: Sequence[Sequence[Tensor]],
    before: Sight | None = None,
    segments_BL: Tensor | None = None,
) -> Sight:
    """What text tokens see of the images whose markers came before them, or are themselves.

    Args:
        injection: Its rule says whether a token sees the latest image, or the latest run of them.
        marker_BL: bool; the text tokens that mark an image, as many in a row as it has images.
        images: Tokens (N, W) of the new images of each row.
        before: Of the text in the cache.
        segments_BL: Which sample's row a token belongs to; None where each row is one sample's.
    """
    windows = before.windows if before else Windows.start(len(marker_BL), marker_BL.device)
    later, new = windows.then(marker_BL, injection.sees_run, segments_BL), marker_BL.shape[1]
    if before is not None and not any(images):
        return replace(before, windows=later, new=new)
    known: Rows = before.images if before else ((),) * len(images)
    together = tuple((*old, *own) for old, own in zip(known, images, strict=True))
    memory, image_of_BM = remember(injection, together, marker_BL)
    return Sight(memory, together, image_of_BM, later, new)


def keep(cache: Any, sight: Sight) -> None:
    """Let what its text saw go where a cache goes."""
    cache.vlmkit_sight = sight


def recall(cache: Any, rows: int) -> Sight:
    """What the text in a cache saw, also where the cache was cut since.

    Rows that changed places cannot be told: beam search changes them among those of one prompt only.

    Args:
        cache: Of `transformers`.
        rows: Rows of the text that goes on.

    Raises:
        VlmkitError: The cache was not filled by this model, or its rows were selected or repeated since.
    """
    sight: Sight | None = getattr(cache, "vlmkit_sight", None)
    if sight is None or cache.get_seq_length() > sight.windows.length:
        raise VlmkitError(
            "the cache does not say which images its text saw; fill it by a forward pass of this model"
        )
    if len(sight.images) != rows:
        raise VlmkitError(
            f"{rows} rows of text and a cache with {len(sight.images)} rows of images: its rows were "
            "selected or repeated, and its images were not; generate from the images anew"
        )
    return sight.until(cache.get_seq_length())


def remember(
    injection: LayerInjection, images: Sequence[Sequence[Tensor]], like_BL: Tensor
) -> tuple[dict[int, Memory], Tensor]:
    """Keys and values of every block, and (B, M) the image in its row of each token, -1 on padding.

    Args:
        injection: With the blocks.
        images: Tokens (N, W) of the images of each row.
        like_BL: On the device of the text.
    """
    none_NW = injection.marker_D.new_zeros(0, injection.seen_width)
    tokens = [torch.cat([none_NW, *own]) for own in images]
    numbers = [
        torch.arange(len(own)).repeat_interleave(torch.tensor([len(one) for one in own], dtype=torch.long))
        for own in images
    ]
    image_of_BM = pad_sequence(numbers, batch_first=True, padding_value=-1).to(like_BL.device)
    tokens_BMW = pad_sequence(tokens, batch_first=True).to(none_NW)
    return {n: block.remember(tokens_BMW) for n, block in injection.each().items()}, image_of_BM
