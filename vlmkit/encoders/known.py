"""Published checkpoints by hub id: what an encoder is built from, so that no configuration is downloaded.

The numbers are those of the published config.json and preprocessor_config.json, for all but CLIP as the
conversion scripts of transformers write them (`models/*/convert_*`). What a family's constructor has as
default (mean, deviation, activation, ...) is not repeated. Loading weights compares the shape of every tensor
with them. Towers without a text half are in `known_towers.py`. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.encoders.known_native import KNOWN_NATIVE
from vlmkit.encoders.known_towers import TOWERS, Known, size
from vlmkit.errors import UsageError

BASE, LARGE, SO400M = size(768, 3072, 12, 12), size(1024, 4096, 24, 16), size(1152, 4304, 27, 16)


def _clip(shape: dict[str, Any], side: int, patch: int, embed_dim: int) -> Known:
    return Known(
        "clip",
        {"vision_config": {**shape, "image_size": side, "patch_size": patch, "projection_dim": embed_dim}},
    )


def _siglip(shape: dict[str, Any], side: int, patch: int, resample: str) -> Known:
    config = {**shape, "image_size": side, "patch_size": patch}
    return Known("siglip", {"vision_config": config, "resample": resample})


def _naflex(shape: dict[str, Any]) -> Known:
    return Known("siglip2_naflex", {"vision_config": {**shape, "patch_size": 16, "num_patches": 256}})


KNOWN: dict[str, Known] = {
    "openai/clip-vit-base-patch16": _clip(BASE, 224, 16, 512),
    "openai/clip-vit-large-patch14": _clip(LARGE, 224, 14, 768),
    "openai/clip-vit-large-patch14-336": _clip(LARGE, 336, 14, 768),
    "google/siglip-base-patch16-224": _siglip(BASE, 224, 16, "bicubic"),
    "google/siglip-large-patch16-384": _siglip(LARGE, 384, 16, "bicubic"),
    "google/siglip-so400m-patch14-224": _siglip(SO400M, 224, 14, "bicubic"),
    "google/siglip-so400m-patch14-384": _siglip(SO400M, 384, 14, "bicubic"),
    "google/siglip2-base-patch16-224": _siglip(BASE, 224, 16, "bilinear"),
    "google/siglip2-so400m-patch14-384": _siglip(SO400M, 384, 14, "bilinear"),
    "google/siglip2-so400m-patch16-384": _siglip(SO400M, 384, 16, "bilinear"),
    "google/siglip2-base-patch16-naflex": _naflex(BASE),
    "google/siglip2-so400m-patch16-naflex": _naflex(SO400M),
    **TOWERS,
    **{name: Known(family, arguments, text=False) for name, (family, arguments) in KNOWN_NATIVE.items()},
}


def known_ids(family: str) -> list[str]:
    """Hub ids that an encoder takes, of those in the table."""
    return [name for name, known in KNOWN.items() if known.family == family]


def known_arguments(family: str, weights: str) -> dict[str, Any] | None:
    """Constructor arguments of a checkpoint in the table; None for another, or where a folder has its name.

    Raises:
        UsageError: The checkpoint is of another family.
    """
    known = KNOWN.get(weights)
    if known is None or Path(weights).is_dir():
        return None
    if known.family != family:
        raise UsageError(
            f"weights {weights!r} are for the encoder {known.family!r}; {family!r} takes such as "
            f"{', '.join(known_ids(family))}"
        )
    return {**known.arguments, "text_tower": weights} if known.text else dict(known.arguments)
