"""List what recipes can name: encoders, connectors, layouts, objectives, data, recipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable

# What tokens are counted for, (width, height): a VGA photo.
PHOTO = (640, 480)
# A table is as wide as it has to be, below this many characters.
WIDEST = 500


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit list`."""
    parser.add_argument("what", choices=sorted(["connectors", *TABLES]))


def run(args: argparse.Namespace) -> int:
    """Print one table."""
    from vlmkit.cli.console import print_table

    if args.what == "connectors":
        _print_connectors()
        return 0
    print_table(args.what, TABLES[args.what]())
    if args.what == "encoders":
        _print_checkpoints()
    return 0


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def _encoders() -> dict[str, str]:
    from vlmkit.encoders import ENCODERS, encoder_class

    return {name: first_line(encoder_class(name)) for name in ENCODERS}


def _print_checkpoints() -> None:
    """A line a hub id, however long: it can be searched with grep."""
    from rich.console import Console
    from rich.table import Table

    from vlmkit.encoders import ENCODERS
    from vlmkit.encoders.known import known_ids

    tokens = f"tokens of {PHOTO[0]}x{PHOTO[1]}"
    names = ("encoder", "weights", "parameters", "patch", "pixels", "layout", tokens, "text", "licence")
    table = Table(*names, box=None)
    for family in ENCODERS:
        for weights in known_ids(family):
            table.add_row(*_checkpoint(family, weights))
    Console().print()
    Console(width=WIDEST).print(table)


def _checkpoint(family: str, weights: str) -> tuple[str, ...]:
    """What the table says of a hub id: read from bundled shapes, nothing is downloaded.

    Parameters are those of the tower that sees, tokens those of its patches, in the published layout.
    """
    import torch

    from vlmkit.encoders import encoder_class
    from vlmkit.encoders.known import KNOWN
    from vlmkit.encoders.licences import licence

    cls = encoder_class(family)
    with torch.device("meta"):
        encoder = cls(**cls.resolve(weights=weights))
    spec = encoder.spec
    layout = type(spec.rule).__name__.lower()
    tokens = sum(view.rows * view.cols for view in spec.features(PHOTO))
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    square = all(view.rows == view.cols for view in spec.views(PHOTO))
    pixels = "any" if encoder.any_grid and not square else str(spec.image_size)
    text = "yes" if KNOWN[weights].text else "no"
    seen = (str(spec.patch_size), pixels, layout, str(tokens), text)
    return (family, weights, f"{millions:,.0f} M", *seen, licence(weights))


def _print_connectors() -> None:
    from rich.console import Console

    from vlmkit.cli.list_connectors import connector_table

    table, notes = connector_table()
    Console(width=WIDEST).print(table, "", *notes, sep="\n")


def _layouts() -> dict[str, str]:
    from vlmkit.layouts import LAYOUTS

    return {name: layout.summary for name, layout in LAYOUTS.items()}


def _objectives() -> dict[str, str]:
    from vlmkit.objectives import OBJECTIVES

    return {name: objective.summary for name, objective in OBJECTIVES.items()}


def _data() -> dict[str, str]:
    from vlmkit.data.formats import DATA_FORMATS

    return {name: first_line(build) for name, build in DATA_FORMATS.items()}


def _recipes() -> dict[str, str]:
    from vlmkit.recipe_files import bundled_recipes

    texts = {name: path.read_text(encoding="utf-8") for name, path in bundled_recipes().items()}
    return {name: text.splitlines()[0].removeprefix("#").strip() for name, text in texts.items()}


TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "encoders": _encoders,
    "layouts": _layouts,
    "objectives": _objectives,
    "data": _data,
    "recipes": _recipes,
}
