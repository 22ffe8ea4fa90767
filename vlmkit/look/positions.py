"""The learned table of positions of an encoder, where it has one, and how alike its rows are.

Shapes: N positions, V width.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vlmkit.encoders.base import VisionEncoder
from vlmkit.look.features import Floats, cosine_to
from vlmkit.look.scene import NotPossible

# What the table is called: our ViT; transformers' DINOv2 and ViT, its CLIP, SigLIP and NaFlex; timm.
TABLES = ("positions", "position_embeddings", "position_embedding.weight", "pos_embed")
# Small maps along an edge; of a larger table some rows and columns are left out, evenly.
MAPS = 8


def position_table(encoder: VisionEncoder) -> tuple[Floats, int]:
    """Rows of the table that belong to patches, (N, V), and the side of the square that they form.

    As stored: where a model resizes the table for an image, that comes later.

    Raises:
        NotPossible: There is no such table.
    """
    found = {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if any(name == table or name.endswith(f".{table}") for table in TABLES)
    }
    if len(found) != 1:
        had = f"found {', '.join(found)}" if found else "its positions enter in another way, such as RoPE"
        raise NotPossible(f"encoder {encoder.name!r} has no single learned table of positions: {had}")
    name, parameter = next(iter(found.items()))
    table_NV = parameter.detach().float().cpu().reshape(-1, parameter.shape[-1]).numpy()
    for prefix in dict.fromkeys((0, 1, encoder.spec.prefix_tokens)):
        side = math.isqrt(max(0, len(table_NV) - prefix))
        if side and side * side == len(table_NV) - prefix:
            return table_NV[prefix:], side
    raise NotPossible(f"the table {name} of encoder {encoder.name!r} has {len(table_NV)} rows: no square")


def similarity_maps(table_NV: Floats, side: int) -> tuple[NDArray[np.float32], list[int]]:
    """Cosines of chosen positions with all, as one picture of small maps with gaps of NaN between.

    Returns:
        The picture, and the rows (also the columns) of the table that were chosen.
    """
    count = min(side, MAPS)
    chosen = [int(i) for i in np.linspace(0, side - 1, count).round()]
    gap = max(1, side // 8)
    edge = count * (side + gap) - gap
    picture = np.full((edge, edge), np.nan, np.float32)
    for i, row in enumerate(chosen):
        for j, col in enumerate(chosen):
            cosines = cosine_to(table_NV, table_NV[row * side + col]).reshape(side, side)
            top, left = i * (side + gap), j * (side + gap)
            picture[top : top + side, left : left + side] = cosines
    return picture, chosen
