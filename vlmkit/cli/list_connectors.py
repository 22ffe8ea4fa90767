"""The table behind `vlmkit list connectors`: tokens, grids, parameters, papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmkit.cli.list_ import first_line

if TYPE_CHECKING:
    from rich.table import Table

    from vlmkit_connectors import Connector

# Grids of patches, (rows, columns): of 336 pixels by 14, and of a landscape photo at NaFlex's 256 patches.
GRIDS = ((24, 24), (13, 19))
# Widths and decoder layers that parameters are counted for: a ViT-L and a language model of about 1.5 B.
VISION_WIDTH, TEXT_WIDTH, TEXT_LAYERS = 1024, 2048, 24
COUNTED_FOR = (
    f"Parameters for an encoder of width {VISION_WIDTH:,} and a language model of width {TEXT_WIDTH:,} with "
    f"{TEXT_LAYERS} layers; each connector with its defaults."
)
BESIDE = "*"
INSIDE = f"{BESIDE} Blocks inside the language model look at these; in the sequence an image is one token."
NAMES = (
    "connector",
    *(f"tokens of {rows}x{cols}" for rows, cols in GRIDS),
    "keeps a grid",
    "parameters",
    "what it is",
    "source",
)


def connector_table() -> tuple[Table, list[str]]:
    """A row a connector, and notes to stand below; from shapes, nothing is computed."""
    from rich.table import Table

    from vlmkit_connectors import CONNECTORS

    table = Table(*NAMES, box=None)
    for name, cls in CONNECTORS.items():
        table.add_row(*_row(name, cls))
    inside = not all(cls.in_sequence for cls in CONNECTORS.values())
    return table, [COUNTED_FOR, *[INSIDE] * inside]


def _row(name: str, cls: type[Connector]) -> tuple[str, ...]:
    """What the table says of a connector."""
    connector = _skeleton(cls)
    mark = "" if connector.in_sequence else BESIDE
    tokens = [f"{connector.num_tokens(grid)}{mark}" for grid in GRIDS]
    keeps = "yes" if all(connector.token_grid(grid) for grid in GRIDS) else "no"
    millions = sum(p.numel() for p in connector.parameters()) / 1e6
    return (name, *tokens, keeps, f"{millions:,.1f} M", first_line(cls), cls.source)


def _skeleton(cls: type[Connector]) -> Connector:
    """One on the meta device: shapes without memory."""
    import torch

    from vlmkit_connectors import LayerInjection

    inside = {"text_layers": TEXT_LAYERS} if issubclass(cls, LayerInjection) else {}
    with torch.device("meta"):
        return cls(vision_widths=[VISION_WIDTH], text_width=TEXT_WIDTH, **inside)
