"""Between connector and language model: tokens of views become the image's run in the sequence.

Shapes: N image tokens, D width of the language model, R C rows and columns of tiles (of tokens, where rows
are separated), h w tokens of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.budget import Budget, SizedImage
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.layouts import Alone, Mosaic, Piece, Size
from vlmkit.layouts.mosaic import Box, mosaic_box
from vlmkit_connectors import (
    CONNECTORS,
    Connector,
    Grid,
    Groups,
    Questions,
    VisionFeatures,
)

# An encoder's rules with the connector that takes its features; several encoders of one connector are one.
Stream = tuple[VisionSpec, Connector]


@dataclass(frozen=True)
class Marks:
    """Learned tokens among the image tokens, whatever the connector; none unless asked for.

    Attributes:
        row_separator: One ends each row of tokens of every view, and of tiles that are put together; as
            Pixtral's `[IMG_BREAK]` (Agrawal et al. 2024, https://arxiv.org/abs/2410.07073), but also after
            the last row.
        image_start, image_end: One before and after all tokens of an image: LLaVA's `mm_use_im_start_end`.
    """

    row_separator: bool = False
    image_start: bool = False
    image_end: bool = False


def streams(specs: Sequence[VisionSpec], connector: Connector | Groups) -> list[Stream]:
    """The runs of tokens that an image gives: one, or one an encoder; the first encoder's rules lead."""
    # Asked of the connector rather than of its class: PEFT's `modules_to_save` wraps it.
    if connector.for_each:
        return list(zip(specs, cast(Groups, connector).each(), strict=True))
    return [(specs[0], cast(Connector, connector))]


def count_tokens(
    specs: Sequence[VisionSpec], connector: Connector | Groups, marks: Marks, image: SizedImage
) -> int:
    """Image tokens that an image takes in the sequence.

    The one function that says so: the processor writes this many placeholders, the model checks against it,
    `plan` and exporters report it.

    Args:
        specs: Of the encoders.
        connector: A copy on the meta device is enough.
        marks: Learned tokens that count, too.
        image: Width and height in pixels, and the level of the layout.

    Raises:
        UsageError: Rows are needed, of tiles or for separators, and the connector's tokens form none.
    """
    # Blocks inside the language model look at the tokens: in the sequence there is a marker.
    return count_given(specs, connector, marks, image) if connector.in_sequence else 1


def count_given(
    specs: Sequence[VisionSpec], connector: Connector | Groups, marks: Marks, image: SizedImage
) -> int:
    """Image tokens that the language model gets of an image, in the sequence or beside it."""
    size, level = image[:2], image[2]
    total = marks.image_start + marks.image_end
    for spec, member in streams(specs, connector):
        grids = [(view.rows, view.cols) for view in spec.features(size, level)]
        pieces = spec.pieces(size, level)
        total += sum(_piece_tokens(piece, grids, member, marks) for piece in pieces)
    return total


def fit_images(
    specs: Sequence[VisionSpec],
    connector: Connector | Groups,
    marks: Marks,
    budget: Budget,
    sizes: Sequence[Size],
) -> list[SizedImage]:
    """The images of one row within a token budget, see `Budget.fit`; it is of the tokens of `count_given`."""
    levels = max(len(spec.chain) - 1 for spec in specs) if budget != Budget() else 0
    return budget.fit(sizes, lambda image: count_given(specs, connector, marks, image), levels)


def _piece_tokens(piece: Piece, grids: Sequence[Grid], connector: Connector, marks: Marks) -> int:
    if isinstance(piece, Mosaic):
        return _box(piece, _tile(piece, grids, connector), marks).tokens
    tokens = connector.num_tokens(grids[piece.view]) + piece.newline
    return tokens + _rows(grids[piece.view], connector)[0] if marks.row_separator else tokens


def _box(mosaic: Mosaic, tile: Grid, marks: Marks) -> Box:
    """The box of a mosaic; a separator ends its rows where a newline would, never both."""
    box = mosaic_box(mosaic, tile)
    return replace(box, newline=True) if marks.row_separator else box


def _tile(mosaic: Mosaic, grids: Sequence[Grid], connector: Connector) -> Grid:
    """Rows and columns of tokens of each tile of a mosaic."""
    tile = connector.token_grid(grids[mosaic.first])
    if tile is None:
        why = "the layout puts tiles together to one grid"
        raise _no_grid(why, connector, "the layout tiles, split or native")
    return tile


def _rows(grid: Grid, connector: Connector) -> Grid:
    """Rows and columns of tokens of a view whose rows are separated."""
    rows = connector.token_grid(grid)
    if rows is None:
        why = "model.splice.row_separator ends each row of a grid of tokens"
        raise _no_grid(why, connector, "row_separator: false")
    return rows


def _no_grid(why: str, connector: Connector, otherwise: str) -> UsageError:
    same = {name: cls for name, cls in CONNECTORS.items() if cls.in_sequence is connector.in_sequence}
    keeps = ", ".join(n for n, cls in same.items() if cls.token_grid is not Connector.token_grid)
    # All of the bundled ones beside the sequence keep the grid where nothing resamples it.
    how = "without fusion: interleave" if connector.in_sequence else "with resampler: none"
    return UsageError(
        f"{why}, and the tokens of {type(connector).__name__} form none; use a connector that keeps the grid "
        f"({keeps}) {how}, or {otherwise}"
    )


class Splice(nn.Module):
    """Arranges the tokens of views; holds the newline token where a layout has one, and the marks.

    Args:
        lanes: The runs of tokens that an image gives.
        text_width: Width D of the language model's embeddings.
        marks: What is written among the tokens.

    Raises:
        UsageError: A layout ends rows with its newline, and row separators are asked for.
    """

    def __init__(self, lanes: Sequence[Stream], text_width: int, marks: Marks = Marks()) -> None:
        super().__init__()
        has_newline = any(spec.rule.newline for spec, _ in lanes)
        if has_newline and marks.row_separator:
            raise UsageError(
                "a layout ends rows of tokens with its newline (anyres), and model.splice.row_separator is "
                "true: one of both; set newline: false in the layout, or row_separator: false"
            )
        self.marks = marks
        self.newline = nn.Parameter(torch.empty(text_width)) if has_newline else None
        self.row_D = nn.Parameter(torch.empty(text_width)) if marks.row_separator else None
        self.start_D = nn.Parameter(torch.empty(text_width)) if marks.image_start else None
        self.end_D = nn.Parameter(torch.empty(text_width)) if marks.image_end else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Each token from a normal distribution of deviation 1 / sqrt(D), as LLaVA-NeXT's newline."""
        for token_D in self.parameters():
            token_D.normal_(std=len(token_D) ** -0.5)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """All tokens (N, D) of one image: those of its streams, one after another, between start and end."""
        start, end = ([] if t is None else [t[None].to(parts[0])] for t in (self.start_D, self.end_D))
        return torch.cat([*start, *parts, *end])

    def forward(
        self,
        stream: Stream,
        features: Sequence[VisionFeatures],
        images: Sequence[SizedImage],
        questions: Questions | None = None,
    ) -> list[Tensor]:
        """The stream of tokens (N, D) of each image; `join` makes its run of them.

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
                yield self._end_rows(own[piece.view], grids[piece.view], connector)
                if piece.newline:
                    assert self.newline is not None
                    yield self.newline[None].to(own[0])
                continue
            tiles_END = torch.stack(own[piece.first : piece.first + piece.rows * piece.cols])
            tile = _tile(piece, grids, connector)
            box = _box(piece, tile, self.marks)
            ends_D = self.newline if self.row_D is None else self.row_D
            yield arrange(tiles_END, (piece.rows, piece.cols), tile, box, ends_D)

    def _end_rows(self, tokens_ND: Tensor, grid: Grid, connector: Connector) -> Tensor:
        """The tokens of a view with a separator after each row, where they are asked for."""
        if self.row_D is None:
            return tokens_ND
        rows, cols = _rows(grid, connector)
        rows_RCD = tokens_ND.view(rows, cols, -1)
        ends_R1D = self.row_D.to(tokens_ND).expand(rows, 1, -1)
        return torch.cat([rows_RCD, ends_R1D], dim=1).flatten(0, 1)


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
