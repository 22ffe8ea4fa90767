"""What a stage minimises: a sum and the weight it is over, so that any split of a batch agrees.

Shapes: B rows, L tokens, S supervised tokens, W words of the vocabulary, E retrieval width, U distinct
captions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE: Final = -100


@dataclass(frozen=True)
class Objective:
    """What an objective needs of a batch.

    Attributes:
        tokens: Conversations, tokenised.
        captions: Captions and a retrieval space.
        summary: In words.
    """

    tokens: bool
    captions: bool
    summary: str


OBJECTIVES: dict[str, Objective] = {
    "next_token": Objective(True, False, "cross-entropy of the supervised tokens"),
    "contrastive": Objective(False, True, "images against captions in a frozen text tower's space"),
}


def token_loss(logits_BLW: Tensor, labels_BL: Tensor, weights_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of next tokens in float32.

    Args:
        logits_BLW: Scores at every position.
        labels_BL: Unshifted labels, -100 where nothing is supervised.
        weights_BL: Weight of each label.

    Returns:
        Sum of weighted losses, and sum of weights.
    """
    targets_BL = labels_BL[:, 1:]
    chosen_BL = targets_BL != IGNORE
    losses_S = F.cross_entropy(logits_BLW[:, :-1][chosen_BL].float(), targets_BL[chosen_BL], reduction="none")
    weights_S = weights_BL[:, 1:][chosen_BL].float()
    return (losses_S * weights_S).sum(), weights_S.sum()


def caption_targets(captions: tuple[tuple[str, ...], ...]) -> tuple[list[str], Tensor]:
    """The distinct captions of a batch, and (B, U): True where a caption is one of the image's."""
    distinct = sorted({caption for own in captions for caption in own})
    column = {caption: i for i, caption in enumerate(distinct)}
    positive_BU = torch.zeros(len(captions), len(distinct), dtype=torch.bool)
    for row, own in enumerate(captions):
        positive_BU[row, [column[c] for c in own]] = True
    return distinct, positive_BU


class ContrastiveHead(nn.Module):
    """CLIP's symmetric softmax loss with many positives (Radford et al. 2021, https://arxiv.org/abs/2103.00020).

    An image has several captions and a caption several images: the target is uniform over them, so equal
    captions in a batch are never negatives of each other's images. The text side is frozen.

    Args:
        scale: Initial factor of the cosine similarities.
        max_scale: It is learned, and never larger than this; if it begins there, it is not learned.
    """

    def __init__(self, scale: float = 20.0, max_scale: float = 100.0) -> None:
        super().__init__()
        # One number in a row: FSDP cuts tensors along a dimension, and would refuse one without any.
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]), requires_grad=scale < max_scale)
        self.max_scale = max_scale

    def forward(self, pooled_BE: Tensor, text_UE: Tensor, positive_BU: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of losses over the images, each of which has a caption, and their number; in float32."""
        # Autocast would multiply in bfloat16 again, and differences of 0.1 between logits near 20 be lost.
        with torch.autocast(pooled_BE.device.type, enabled=False):
            image_BE = F.normalize(pooled_BE.float(), dim=-1)
            scale = self.log_scale.exp().clamp(max=self.max_scale)
            logits_BU = scale * image_BE @ F.normalize(text_UE.float(), dim=-1).T
            to_text = _uniform_cross_entropy(logits_BU, positive_BU)
            to_image = _uniform_cross_entropy(logits_BU.T, positive_BU.T)
            count = logits_BU.new_tensor(len(logits_BU))
            return (to_text + to_image) / 2 * count, count


def _uniform_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy against the uniform distribution over a row's positives."""
    target = positive.to(logits.dtype)
    target = target / target.sum(1, keepdim=True)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def objective_weights(objective: str | Mapping[str, float]) -> dict[str, float]:
    """`contrastive` or `{next_token: 1, contrastive: 0.2}` as weights by name."""
    return {objective: 1.0} if isinstance(objective, str) else dict(objective)
