"""Whether a language model keeps apart what shares a row: asked of the model itself, on a few tokens.

A mask and positions are all that separates packed rows. Families that carry a state from token to token
(RWKV, Mamba, their hybrids with attention) pass it on all the same, and no configuration says so in one way.

Shapes: L tokens, W words of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vlmkit.vlm import VLM

WORDS = 5
# No vocabulary is a multiple of all of them.
STEPS = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)
# Kernels differ in the last bits, a state that is passed on says as much as a word of one's own.
LEAK = 0.01


@torch.no_grad()
def keeps_apart(model: VLM, shared: int = 0) -> bool:
    """Whether a conversation's logits behind another one, in its row, are those of it alone.

    The difference is compared with what another first word of the conversation itself changes.

    Args:
        model: Its language model is run three times.
        shared: Tokens of a prefix that both conversations see; 0 for rows of several samples.
    """
    words = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    # A step that divides the vocabulary would come back to the same words: both conversations would be one.
    step = next(prime for prime in STEPS if words % prime)
    ids_L = (step * torch.arange(shared + 2 * WORDS, device=model.device) + 3) % words
    alone_L = torch.cat([ids_L[:shared], ids_L[-WORDS:]])
    other_L = alone_L.clone()
    other_L[shared] = ids_L[shared]
    training = model.training
    model.eval()
    try:
        packed_LW = _logits(model, ids_L, shared)[-WORDS:]
        own_LW, changed_LW = (_logits(model, row_L, shared)[-WORDS:] for row_L in (alone_L, other_L))
    finally:
        model.train(training)
    wanted = float((changed_LW - own_LW).abs().max())
    return float((packed_LW - own_LW).abs().max()) <= LEAK * wanted


def _logits(model: VLM, ids_L: Tensor, shared: int) -> Tensor:
    """Of a row of one or two conversations of as many words, as training would lay it out."""
    place_L = torch.arange(-shared, len(ids_L) - shared, device=ids_L.device)
    which_L = torch.where(place_L < 0, 0, place_L // WORDS + bool(shared))[None]
    positions_1L = torch.where(place_L < 0, place_L, place_L % WORDS)[None] + shared
    read = model.read_embeddings(model.get_input_embeddings()(ids_L[None]))
    rows = (which_L, None) if shared else (0 * which_L, which_L)
    logits_1LW: Tensor = model.decode(read, *rows, position_ids=positions_1L, use_cache=False).logits
    return logits_1LW[0].float()
