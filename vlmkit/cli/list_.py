"""List what recipes can name: encoders, connectors, layouts, objectives, data, recipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit list`."""
    parser.add_argument("what", choices=sorted(TABLES))


def run(args: argparse.Namespace) -> int:
    """Print one table."""
    from vlmkit.cli.console import print_table

    print_table(args.what, TABLES[args.what]())
    return 0


def first_line(thing: object) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


def _encoders() -> dict[str, str]:
    from vlmkit.encoders import ENCODERS, encoder_class
    from vlmkit.encoders.known import known_ids

    return {name: "\n  ".join([first_line(encoder_class(name)), *known_ids(name)]) for name in ENCODERS}


def _connectors() -> dict[str, str]:
    from vlmkit_connectors import CONNECTORS

    return {name: first_line(cls) for name, cls in CONNECTORS.items()}


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
    "connectors": _connectors,
    "layouts": _layouts,
    "objectives": _objectives,
    "data": _data,
    "recipes": _recipes,
}
