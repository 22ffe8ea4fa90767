"""What values the options have that encoders share; a wrong one is refused in the user's words. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.errors import UsageError

# Whole numbers, and the least of each.
LEAST = {
    "image_size": 1, "patch_size": 1, "width": 1, "prefix_tokens": 0, "embed_dim": 0, "shortest_edge": 0,
    "max_patches": 0, "max_num_patches": 1,
}  # fmt: skip


def check_values(of: str, given: Mapping[str, Any]) -> None:
    """Refuse a value of a wrong kind among the options that encoders share; others and None are left alone.

    Args:
        of: The encoder's family, for messages.
        given: Options by name.

    Raises:
        UsageError: Says what was found and what is possible.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name in LEAST:
            check_whole(of, name, value, LEAST[name])
        elif name == "layer":
            check_whole(of, name, value)
        elif name in ("mean", "std"):
            rgb(of, name, value)
        elif name == "pooled" and not isinstance(value, bool):
            raise UsageError(f"{of}: found pooled {value!r}; give true or false")


def check_whole(of: str, name: str, value: object, least: int | None = None) -> None:
    """Refuse what is no whole number, or less than the `least`; see `check_values`."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" of {least} or more"
        raise UsageError(f"{of}: found {name} {value!r}; give a whole number{bound}")


def rgb(of: str, name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Three numbers, for red, green and blue; those of `std` are divided by.

    Raises:
        UsageError: There are not three, or one does not fit.
    """
    if not isinstance(values, list | tuple):
        raise UsageError(f"{of}: found {name} {values!r}; give three numbers, for red, green and blue")
    if len(values) != 3:
        raise UsageError(f"{of}: {name} has {len(values)} values; give three, for red, green and blue")
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name == "std" and value <= 0):
            least = " above 0" if name == "std" else ""
            raise UsageError(f"{of}: found {name} {list(values)}; give three numbers{least}")
    return (float(values[0]), float(values[1]), float(values[2]))
