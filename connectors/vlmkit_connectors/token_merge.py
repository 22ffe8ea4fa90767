"""Alike patches are averaged until a stated number is left, without training; then an MLP. ToMe.

Shapes: I views of one grid, R C its rows and columns, P patches of a view, N tokens now, E O tokens at
even and odd places, M merges of a round, V vision width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.views import map_grids

# Numbers of the copies that the matching makes: 128 MiB in float64, some 28 views of 576 patches of 1024.
MOST_NUMBERS = 2**24


class TokenMergeConnector(Connector):
    """Alike patches are averaged, by matching without parameters, until a share is left; then an MLP.

    The matching is that of ToMe (Bolya et al. 2022, https://arxiv.org/abs/2210.09461). There every block of a
    ViT merges some tokens by the keys of its attention; here the encoder is finished, and rounds of merging,
    by the patches themselves, follow each other until the number is reached. The number depends on the grid
    alone, which patches merge on what is in them. Tokens come in the order of their first patch and form no
    grid. The language model does not see how many patches a token holds.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        keep: Share of the patches that is left, rounded to the nearest number, at least one. Without
            `tokens`, a quarter.
        tokens: Most tokens of a view, instead of `keep`; a view of fewer patches stays as it is.
        depth: Number of linear layers, GELU between them; at least 1.
    """

    source = "ToMe, https://arxiv.org/abs/2210.09461"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        keep: float | None = None,
        tokens: int | None = None,
        depth: int = 2,
    ) -> None:
        super().__init__()
        check_sizes("token_merge", tokens=tokens, depth=depth)
        if keep is not None and tokens is not None:
            raise ValueError(
                f"token_merge connector: found keep={keep} and tokens={tokens}; give one of them, not both"
            )
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"token_merge connector: found keep={keep}; give a share above 0 and at most 1")
        self.keep = 0.25 if keep is None else keep
        self.tokens = tokens
        self.layers = mlp_layers([sum(vision_widths)] + [text_width] * depth)

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`: the share that is kept of rows * columns, or at most `tokens`."""
        patches = math.prod(grid)
        if self.tokens is not None:
            return min(self.tokens, patches)
        return max(1, round(self.keep * patches))

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        merged = map_grids(concat_encoders(features), self._merge)
        return ImageTokens(self.layers(merged.tokens_ND), merged.counts)

    def _merge(self, patches_IRCV: Tensor) -> Tensor:
        _, rows, cols, _ = patches_IRCV.shape
        tokens_INV, _ = merge_tokens(patches_IRCV.flatten(1, 2), self.num_tokens((rows, cols)))
        return tokens_INV


def merge_tokens(patches_IPV: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Merge the patches of each view to `number` tokens, each the average of its patches.

    Returns:
        The tokens (I, number, V), in the order of their first patch, and how many patches each holds
        (I, number). Gradients reach every patch through its average; the matching itself has none.
    """
    token_of_patch_IP = assign_tokens(patches_IPV, number)
    return average(patches_IPV, token_of_patch_IP, number)


@torch.no_grad()
def assign_tokens(patches_IPV: Tensor, number: int) -> Tensor:
    """The number of the token that each patch goes to, int64, shape (I, P).

    In float64: neither autocast, TF32 nor another batch may turn a tie, or the tokens would depend on them.
    Apple's GPUs have none: there in float32, and patches alike to a ten thousandth count as equal. Views go
    a few at a time, so that the wide copies take no more memory than `MOST_NUMBERS` each.
    """
    device, (_, patches, width) = patches_IPV.device, patches_IPV.shape
    wide = torch.float32 if device.type == "mps" else torch.float64
    few = max(1, MOST_NUMBERS // max(1, patches * width))
    with torch.autocast(device.type, enabled=False):
        return torch.cat([_assign(own_IPV.to(wide), number) for own_IPV in torch.split(patches_IPV, few)])


def _assign(patches_IPV: Tensor, number: int) -> Tensor:
    """The same for views in the type that decides."""
    views, left, _ = patches_IPV.shape
    token_of_patch_IP = torch.arange(left, device=patches_IPV.device).repeat(views, 1)
    tokens_INV = patches_IPV
    while left > number:
        merges = min(left // 2, left - number)
        token_of_patch_IP = match(tokens_INV, merges).gather(1, token_of_patch_IP)
        left -= merges
        tokens_INV, _ = average(patches_IPV, token_of_patch_IP, left)
    return token_of_patch_IP


def match(tokens_INV: Tensor, merges: int) -> Tensor:
    """One round of ToMe's bipartite soft matching: the new number of each token, (I, N).

    Each token at an even place has one partner, the most alike token (cosine) at an odd place. The `merges`
    most alike pairs merge; several even ones may go to one odd. Of equals, those that come first.
    """
    directions = F.normalize(tokens_INV, dim=-1)
    alike_IEO = directions[:, 0::2] @ directions[:, 1::2].transpose(1, 2)
    # Rounded, or noise in the last digits would order patches that are equal.
    decimals = 9 if alike_IEO.dtype == torch.float64 else 4
    best_IE, partner_IE = alike_IEO.round(decimals=decimals).max(dim=-1)
    chosen_IM = best_IE.argsort(dim=-1, descending=True, stable=True)[:, :merges]
    places_IN = torch.arange(tokens_INV.shape[1], device=tokens_INV.device).repeat(len(tokens_INV), 1)
    into_IN = places_IN.scatter(1, 2 * chosen_IM, 2 * partner_IE.gather(1, chosen_IM) + 1)
    # A group is numbered by the place of its first member.
    first_IN = places_IN.scatter_reduce(1, into_IN, places_IN, "amin").gather(1, into_IN)
    is_first_IN = torch.zeros_like(places_IN).scatter(1, first_IN, 1)
    return (is_first_IN.cumsum(1) - 1).gather(1, first_IN)


def average(patches_IPV: Tensor, token_of_patch_IP: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Averages of the patches of each of `number` tokens, (I, number, V), and their sizes, (I, number).

    Summed in float32, or in float64 if the patches are; given back in their type.
    """
    views, _, width = patches_IPV.shape
    first_I1 = number * torch.arange(views, device=patches_IPV.device).unsqueeze(1)
    where = (first_I1 + token_of_patch_IP).flatten()
    values = patches_IPV.flatten(0, 1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    sums = values.new_zeros(views * number, width).index_add(0, where, values)
    sizes = values.new_zeros(views * number).index_add(0, where, values.new_ones(len(where)))
    tokens_INV = (sums / sizes.unsqueeze(1)).view(views, number, width)
    return tokens_INV.to(patches_IPV.dtype), sizes.view(views, number)
