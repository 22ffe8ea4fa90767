"""What blocks inside the language model see: which image tokens, and for which text token.

Shapes: B rows, L text tokens, M most image tokens of a row, W their width, N tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlmkit_connectors import LayerInjection, Memory


@dataclass(frozen=True)
class Sight:
    """The images of a batch as the blocks of a `LayerInjection` see them.

    It is kept beside the cache while text is generated, so that keys and values are computed once.

    Attributes:
        memory: Keys and values by the number of the decoder layer.
        images: The tokens (N, W) of each image, row by row.
        image_of_BM: Number of the image, in its row, that a token belongs to; -1 is padding.
        first_BL: The first image that each text token sees.
        stop_BL: The image after the last one that it sees; none is seen where it is not above the first.
        marker_BL: Which text tokens are markers.
    """

    memory: dict[int, Memory]
    images: tuple[tuple[Tensor, ...], ...]
    image_of_BM: Tensor
    first_BL: Tensor
    stop_BL: Tensor
    marker_BL: Tensor

    @cached_property
    def seen_BLM(self) -> Tensor:
        """bool: which image tokens each text token may look at."""
        image_B1M = self.image_of_BM[:, None]
        return (image_B1M >= self.first_BL[..., None]) & (image_B1M < self.stop_BL[..., None])


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
) -> Sight:
    """What text tokens see of the images whose markers came before them, or are themselves.

    Args:
        injection: Its rule says whether a token sees the latest image, or the latest run of them.
        marker_BL: bool; the text tokens that mark an image, as many in a row as it has images.
        images: Tokens (N, W) of the new images of each row.
        before: Of the text in the cache.
    """
    first_BL, stop_BL = windows(marker_BL, injection.sees_run, before)
    if before is None or any(images):
        known = before.images if before else ((),) * len(images)
        images = [(*old, *new) for old, new in zip(known, images, strict=True)]
        memory, image_of_BM = remember(injection, images, marker_BL)
    else:
        memory, images, image_of_BM = before.memory, before.images, before.image_of_BM
    return Sight(memory, _frozen(images), image_of_BM, first_BL, stop_BL, marker_BL)


def windows(marker_BL: Tensor, run: bool, before: Sight | None = None) -> tuple[Tensor, Tensor]:
    """The images that each text token sees, as `Sight.first_BL` and `Sight.stop_BL`.

    Args:
        marker_BL: bool.
        run: Whether all images count whose markers stand side by side, up to the token itself.
        before: Of the text in the cache.
    """
    none_B1 = marker_BL.new_zeros(len(marker_BL), 1, dtype=torch.long)
    last = (none_B1, none_B1, none_B1.bool())
    if before is not None:
        last = (before.first_BL[:, -1:], before.stop_BL[:, -1:], before.marker_BL[:, -1:])
    first_B1, stop_B1, marked_B1 = last
    stop_BL = stop_B1 + marker_BL.long().cumsum(1)
    if not run:
        return (stop_BL - 1).clamp(min=0), stop_BL
    starts_BL = marker_BL & ~torch.cat([marked_B1, marker_BL[:, :-1]], dim=1)
    first_BL = torch.where(starts_BL, stop_BL - 1, 0).cummax(1).values
    return torch.maximum(first_BL, first_B1), stop_BL


def remember(
    injection: LayerInjection, images: Sequence[Sequence[Tensor]], like_BL: Tensor
) -> tuple[dict[int, Memory], Tensor]:
    """Keys and values of every block, and (B, M) the image in its row of each token, -1 on padding.

    Args:
        injection: With the blocks.
        images: Tokens (N, W) of the images of each row.
        like_BL: On the device of the text.
    """
    counts = [[len(one) for one in own] for own in images]
    most = max(map(sum, counts))
    image_of_BM = torch.full((len(images), most), -1, device=like_BL.device)
    tokens_BMW = injection.marker_D.new_zeros(len(images), most, injection.seen_width)
    for b, own in enumerate(images):
        if own:
            tokens_BMW[b, : sum(counts[b])] = torch.cat(list(own))
            numbers = torch.arange(len(own)).repeat_interleave(torch.tensor(counts[b]))
            image_of_BM[b, : sum(counts[b])] = numbers.to(image_of_BM)
    memory = {layer: block.remember(tokens_BMW) for layer, block in injection.each().items()}
    return memory, image_of_BM


def _frozen(images: Sequence[Sequence[Tensor]]) -> tuple[tuple[Tensor, ...], ...]:
    return tuple(tuple(own) for own in images)
