"""What `search`, `eval` and `rag` have in common: which spaces of an index they ask, and by what weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit_retrieval.search import SearchOptions


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--encoder`, `--weight`, and `--fuse`."""
    parser.add_argument(
        "--encoder",
        action="append",
        metavar="NAME|RUN|NAME=RUN",
        help="ask this one only, by its name in the index, where it is now, or both; may be repeated (all)",
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="SPACE=N",
        help="how much a list counts (1), e.g. bm25=2 or clip:text=0; may be repeated",
    )
    parser.add_argument(
        "--fuse",
        default="ranks",
        choices=["ranks", "scores"],
        help="what of several lists counts: ranks in them, or scores brought to 0 to 1 (ranks)",
    )


def compose_argument(parser: argparse.ArgumentParser) -> None:
    """`--compose`, where queries may have a text and an image."""
    parser.add_argument(
        "--compose",
        default="balanced",
        choices=["balanced", "lists", "mean", "slerp"],
        help="what a text with an image becomes: one vector between the two, or a list each (balanced)",
    )


def options(args: argparse.Namespace) -> SearchOptions:
    """What these arguments say about a search.

    Raises:
        UsageError: A weight that is not `SPACE=N`, or not possible.
    """
    from vlmkit_retrieval.search import SearchOptions

    found = SearchOptions(weights(args.weight), fuse=args.fuse)
    return replace(found, compose=args.compose) if "compose" in args else found


def weights(stated: Sequence[str]) -> dict[str, float]:
    """Weight by list or space.

    Raises:
        UsageError: One is not `SPACE=N`.
    """
    found = {}
    for one in stated:
        name, _, number = one.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"--weight {one} is not SPACE=N; give e.g. --weight bm25=2")
    return found
