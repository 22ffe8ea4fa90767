"""How many tokens a mosaic of tiles has, and which: the model's cut and the count use this one function.

The rules of LLaVA-1.6's `unpad_image` and LLaVA-OneVision's `anyres_max`, rounding included, as in
transformers (`LlavaNextModel.pack_image_features`, `LlavaOnevisionModel.pack_image_features`). No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmkit.layouts.base import Mosaic, Size

# A grid that is larger than the limit by less than this stays as it is.
TOLERANCE = 1.1


@dataclass(frozen=True)
class Box:
    """The part of the tiles' joined grid that shows the image, and the grid that it is scaled to; in tokens.

    Attributes:
        top, left: Where the part begins.
        rows, cols: Of the part. An image of extreme proportions can leave none.
        out_rows, out_cols: Of the grid that enters the sequence; those of the part unless it is scaled down.
        newline: Whether one newline token ends each row.
    """

    top: int
    left: int
    rows: int
    cols: int
    out_rows: int
    out_cols: int
    newline: bool

    @property
    def tokens(self) -> int:
        """Tokens that enter the sequence."""
        return self.out_rows * (self.out_cols + self.newline)


def mosaic_box(mosaic: Mosaic, tile: tuple[int, int]) -> Box:
    """The box of a mosaic.

    Args:
        mosaic: As the layout states it.
        tile: Rows and columns of tokens of one tile, after the connector.
    """
    high, wide = mosaic.rows * tile[0], mosaic.cols * tile[1]
    top, left = _padding(mosaic.image_size, high, wide)
    rows, cols = high - 2 * top, wide - 2 * left
    return Box(
        top, left, rows, cols, *_scaled(rows, cols, mosaic.max_tiles * tile[0] * tile[1]), mosaic.newline
    )


def _padding(image_size: Size, high: int, wide: int) -> tuple[int, int]:
    """Rows above (and below) and columns left (and right) that show only padding."""
    width, height = image_size
    if width / height > wide / high:
        return (high - int(round(height * (wide / width), 7))) // 2, 0
    return 0, (wide - int(round(width * (high / height), 7))) // 2


def _scaled(rows: int, cols: int, limit: int) -> tuple[int, int]:
    """Rows and columns scaled down to about `limit` tokens; 0 for no limit."""
    ratio = math.sqrt(rows * cols / limit) if limit else 0
    if ratio <= TOLERANCE:
        return rows, cols
    # The reference fails where one of them is 0.
    return max(1, int(rows // ratio)), max(1, int(cols // ratio))
