"""How an image becomes views. One contract (`base`), one table, no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vlmkit.errors import UsageError, unknown_name
from vlmkit.layouts.anyres import AnyRes, AnyResMax
from vlmkit.layouts.base import Alone, Frame, Layout, Mosaic, Piece, Size, View
from vlmkit.layouts.longest import Longest
from vlmkit.layouts.native import Native
from vlmkit.layouts.one_view import Crop, Letterbox, Pad, Square
from vlmkit.layouts.qwen import Qwen
from vlmkit.layouts.scales import Scales
from vlmkit.layouts.split import Split
from vlmkit.layouts.tiles import Tiles

LAYOUTS: dict[str, type[Layout]] = {
    "square": Square,
    "crop": Crop,
    "pad": Pad,
    "letterbox": Letterbox,
    "native": Native,
    "anyres": AnyRes,
    "anyres_max": AnyResMax,
    "tiles": Tiles,
    "split": Split,
    "scales": Scales,
    "longest": Longest,
    "qwen": Qwen,
}


def build_layout(stated: str | Mapping[str, Any]) -> Layout:
    """A layout from what a recipe says: its name, or a mapping of `type` and options.

    Raises:
        UsageError: There is no such layout or option, or a value does not fit.
    """
    options = {"type": stated} if isinstance(stated, str) else dict(stated)
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in LAYOUTS:
        raise unknown_name("layout", str(name), LAYOUTS)
    known = inspect.signature(LAYOUTS[name]).parameters
    for option in options:
        if option not in known:
            raise unknown_name(f"option of layout {name!r}:", option, known or ["none"])
    try:
        return LAYOUTS[name](**options)
    except TypeError as error:
        raise UsageError(f"layout {name!r}: {error}") from error


__all__ = [
    "LAYOUTS", "Alone", "Frame", "Layout", "Mosaic", "Piece", "Size", "View", "build_layout",
]  # fmt: skip
