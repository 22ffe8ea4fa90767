"""What timm states about preprocessing, in the words of a `VisionSpec`. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vlmkit.encoders.spec import RESAMPLES
from vlmkit.errors import UsageError

# timm's ways to make a square that a layout does too.
CROPS = ("center", "squash")


def stated_pixels(
    model: str, cfg: Mapping[str, Any], image_size: int, given: Collection[str]
) -> dict[str, Any]:
    """`mean`, `std`, `resample`, `layout`, `shortest_edge` as `timm.data.create_transform` would do it.

    Args:
        model: For messages.
        cfg: `timm.data.resolve_data_config` of the model.
        image_size: Side of a view.
        given: Options that a recipe states, which need no counterpart here.

    Raises:
        UsageError: No layout or interpolation of ours does the same, and none is given.
    """
    found = {"mean": list(cfg["mean"]), "std": list(cfg["std"])}
    if "resample" not in given:
        found["resample"] = _resample(model, cfg["interpolation"])
    if "layout" not in given:
        found |= _layout(model, cfg["crop_mode"], cfg["crop_pct"], image_size)
    return found


def _resample(model: str, interpolation: str) -> Any:
    if interpolation not in RESAMPLES:
        raise UsageError(
            f"timm's {model} states interpolation {interpolation!r}; possible: {', '.join(RESAMPLES)}; "
            "state resample"
        )
    return interpolation


def _layout(model: str, mode: str, fraction: float, side: int) -> dict[str, Any]:
    """timm enlarges by 1 / crop_pct before it cuts the centre."""
    edge = math.floor(side / fraction)
    if mode == "center":
        return {"layout": {"type": "crop", "rounded": True}, "shortest_edge": edge}
    if mode == "squash" and edge == side:
        return {"layout": "square", "shortest_edge": 0}
    if mode == "squash":
        return {"layout": {"type": "crop", "stretch": True, "rounded": True}, "shortest_edge": edge}
    raise UsageError(
        f"timm's {model} states crop_mode {mode!r} with crop_pct {fraction}, which no layout does; possible: "
        "'center' and 'squash'; state layout (crop, pad or square)"
    )
