"""Between connector and language model: tokens of views become the image's run in the sequence.

Shapes: N image tokens, D width of the language model, R C rows and columns of tiles, h w tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.budget import Budget, SizedImage
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.layouts import Alone, Mosaic, Piece, Size
from vlmkit.layouts.mosaic import Box, mosaic_box
from vlmkit_connectors import Connector, Grid, Groups, LayerInjection, Questions, VisionFeatures

# An encoder's rules with the connector that takes its features; several encoders of one connector are one.
Stream = tuple[VisionSpec, Connector]


def streams(specs: Sequence[VisionSpec], connector: Connector | Groups) -> list[Stream]:
    """The runs of tokens that an image gives: one, or one an encoder; the first encoder's rules lead."""
    if isinstance(connector, Groups):
        return list(zip(specs, connector.each(), strict=True))
    return [(specs[0], connector)]


def count_tokens(specs: Sequence[VisionSpec], connector: Connector | Groups, image: SizedImage) -> int:
    """Image tokens that an image takes in the sequence.

    The one function that says so: the processor writes this many placeholders, the model checks against it,
    `plan` and exporters report it.

    Args:
        specs: Of the encoders.
        connector: A copy on the meta device is enough.
        image: Width and height in pixels, and the level of the layout.
    """
    # Blocks inside the language model look at the tokens: in the sequence there is a marker.
    return 1 if isinstance(connector, LayerInjection) else count_given(specs, connector, image)


def count_given(specs: Sequence[VisionSpec], connector: Connector | Groups, image: SizedImage) -> int:
    """Image tokens that the language model gets of an image, in the sequence or beside it."""
    size, level = image[:2], image[2]
    total = 0
    for spec, member in streams(specs, connector):
        grids = [(view.rows, view.cols) for view in spec.features(size, level)]
        pieces = spec.pieces(size, level)
        total += sum(_piece_tokens(piece, grids, member) for piece in pieces)
    return total


def fit_images(
    specs: Sequence[VisionSpec], connector: Connector | Groups, budget: Budget, sizes: Sequence[Size]
) -> list[SizedImage]:
    """The images of one row within a token budget, see `Budget.fit`; it is of the tokens of `count_given`."""
    levels = max(len(spec.chain) - 1 for spec in specs) if budget != Budget() else 0
    return budget.fit(sizes, lambda image: count_given(specs, connector, image), levels)


def _piece_tokens(piece: Piece, grids: Sequence[Grid], connector: Connector) -> int:
    if isinstance(piece, Alone):
        return connector.num_tokens(grids[piece.view]) + piece.newline
    return _box(piece, grids, connector).tokens


def _box(mosaic: Mosaic, grids: Sequence[Grid], connector: Connector) -> Box:
    tile = connector.token_grid(grids[mosaic.first])
    if tile is None:
        raise UsageError(
            f"the layout puts tiles together to one grid, and the tokens of {type(connector).__name__} form "
            "none; use a connector that keeps the grid (mlp) without fusion: interleave, or the layout "
            "tiles, split or native"
        )
    return mosaic_box(mosaic, tile)


class Splice(nn.Module):
    """Arranges the tokens of views; holds the newline token where a layout has one.

    Args:
        lanes: The runs of tokens that an image gives.
        text_width: Width D of the language model's embeddings.
    """

    def __init__(self, lanes: Sequence[Stream], text_width: int) -> None:
        super().__init__()
        has_newline = any(spec.rule.newline for spec, _ in lanes)
        self.newline = nn.Parameter(torch.empty(text_width)) if has_newline else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The newline from a normal distribution of deviation 1 / sqrt(D), as in LLaVA-NeXT."""
        if self.newline is not None:
            self.newline.normal_(std=len(self.newline) ** -0.5)

    def forward(
        self,
        stream: Stream,
        features: Sequence[VisionFeatures],
        images: Sequence[SizedImage],
        questions: Questions | None = None,
    ) -> list[Tensor]:
        """The run of tokens (N, D) of each image.

        Args:
            stream: Rules and connector.
            features: Of the encoders that the connector takes.
            images: The images' sizes.
            questions: Of each image, for connectors that read them.
        """
        spec, connector = stream
        given = connector(features, questions)
        views = iter(torch.split(given.tokens_ND, given.counts))
        return [torch.cat(list(self._run(image, spec, connector, views))) for image in images]

    def _run(
        self, image: SizedImage, spec: VisionSpec, connector: Connector, views: Iterator[Tensor]
    ) -> Iterator[Tensor]:
        size, level = image[:2], image[2]
        grids = [(view.rows, view.cols) for view in spec.features(size, level)]
        own = [next(views) for _ in grids]
        for piece in spec.pieces(size, level):
            if isinstance(piece, Alone):
                yield own[piece.view]
                if piece.newline:
                    assert self.newline is not None
                    yield self.newline[None].to(own[0])
                continue
            tiles_END = torch.stack(own[piece.first : piece.first + piece.rows * piece.cols])
            box, tile = _box(piece, grids, connector), connector.token_grid(grids[piece.first])
            assert tile is not None
            yield arrange(tiles_END, (piece.rows, piece.cols), tile, box, self.newline)


def arrange(tiles_END: Tensor, mosaic: Grid, tile: Grid, box: Box, newline_D: Tensor | None = None) -> Tensor:
    """Put tiles together, cut the image out, scale it down if `box` says so, end each row with a newline.

    LLaVA-1.6's and, scaled down, LLaVA-OneVision's order (Li et al. 2024, https://arxiv.org/abs/2408.03326).

    Args:
        tiles_END: (R * C, h * w, D), row by row.
        mosaic: R, C.
        tile: h, w.
        box: What is cut out, and its final size.
        newline_D: The newline, where the box has one.

    Returns:
        (N, D).
    """
    (rows, cols), (h, w) = mosaic, tile
    whole = tiles_END.view(rows, cols, h, w, -1).permute(4, 0, 2, 1, 3).reshape(-1, rows * h, cols * w)
    cut = whole[:, box.top : box.top + box.rows, box.left : box.left + box.cols]
    if (box.out_rows, box.out_cols) != (box.rows, box.cols):
        cut = F.interpolate(cut[None], (box.out_rows, box.out_cols), mode="bilinear")[0]
    if box.newline:
        assert newline_D is not None
        column = newline_D.to(cut)[:, None, None].expand(-1, box.out_rows, 1)
        cut = torch.cat([cut, column], dim=2)
    return cut.flatten(1).T
