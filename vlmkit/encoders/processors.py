"""What a stored Hugging Face image processor states, in the words of a `VisionSpec`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmkit.encoders.spec import RESAMPLES
from vlmkit.errors import UsageError

SCALE = 1 / 255


def stated_pixels(stored: Mapping[str, Any]) -> dict[str, Any]:
    """`mean`, `std` and `resample`, as far as they are stored.

    Raises:
        UsageError: The processor does something that `VisionSpec.preprocess` does not.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if stored.get(step, True) is not True:
            raise UsageError(
                f"the checkpoint's image processor has {step}={stored[step]}; only true is supported"
            )
    if abs(stored.get("rescale_factor", SCALE) - SCALE) > 1e-9:
        raise UsageError(
            f"the image processor has rescale_factor={stored['rescale_factor']}; only 1/255 is supported"
        )
    found = {"mean": stored.get("image_mean"), "std": stored.get("image_std"), "resample": _resample(stored)}
    return {name: value for name, value in found.items() if value is not None}


def stated_layout(stored: Mapping[str, Any], side: int) -> str:
    """The layout that does what the processor does for an encoder of `side` x `side` pixels.

    Raises:
        UsageError: None does.
    """
    square = {"height": side, "width": side}
    size, crop = stored.get("size", side), stored.get("crop_size", side)
    crops = stored.get("do_center_crop", True)
    if crop in (side, square) or not crops:
        if crops and size in (side, {"shortest_edge": side}):
            return "crop"
        if size == square:
            return "square"
    raise UsageError(
        f"the image processor (size={size}, crop_size={crop}, do_center_crop={crops}) fits no layout for "
        f"views of {side} pixels; state one: layout=crop, pad or square"
    )


def stated_crop(stored: Mapping[str, Any]) -> dict[str, Any]:
    """`layout`, `image_size` and `shortest_edge` of a processor that decides them, as DINOv2's does.

    Raises:
        UsageError: It does neither crop the centre square nor resize to a square.
    """
    size, crop = stored.get("size"), stored.get("crop_size")
    edge, side = _number(size, "shortest_edge"), _number(crop, "height")
    crops = stored.get("do_center_crop", True)
    if crops and edge and side and crop in (side, {"height": side, "width": side}):
        return {"layout": "crop", "image_size": side, "shortest_edge": edge}
    square = _number(size, "height")
    if square and size == {"height": square, "width": square}:
        if not (crops and crop):
            return {"layout": "square", "image_size": square}
        if side and side <= square:
            layout = {"type": "crop", "stretch": True}
            return {"layout": layout, "image_size": side, "shortest_edge": square}
    raise UsageError(
        f"the image processor (size={size}, crop_size={crop}, do_center_crop={crops}) fits no layout; "
        "state layout (crop, pad or square) and image_size"
    )


def _number(size: Any, key: str) -> int:
    """A size that is stored as a number, or as a dictionary; 0 if it is not."""
    return size if isinstance(size, int) else int((size or {}).get(key, 0))


def stated_budget(stored: Mapping[str, Any], patch: int) -> dict[str, Any]:
    """`max_num_patches`, if it is stored.

    Raises:
        UsageError: The processor cuts other patches than the encoder.
    """
    if stored.get("patch_size", patch) != patch:
        raise UsageError(f"the image processor has patch_size={stored['patch_size']}, the encoder {patch}")
    return {"max_num_patches": stored["max_num_patches"]} if "max_num_patches" in stored else {}


def _resample(stored: Mapping[str, Any]) -> str | None:
    number = stored.get("resample")
    names = {int(value): name for name, value in RESAMPLES.items()}
    if number is not None and number not in names:
        raise UsageError(f"the checkpoint's image processor has resample={number}; supported: {names}")
    return None if number is None else names[number]
