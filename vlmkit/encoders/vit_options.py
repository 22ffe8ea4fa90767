"""The options of our Vision Transformer: sizes by name, and what does not fit together. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vlmkit.errors import UsageError, unknown_name

Size = Literal["Ti", "S", "B", "L", "H", "g"]
Positions = Literal["learned", "learned_2d", "sincos_2d", "rope_2d"]
Stem = Literal["patch", "conv"]
Pool = Literal["cls", "mean", "map"]
Mlp = Literal["gelu", "swiglu"]
Norm = Literal["layer", "rms"]
NAMES: dict[str, Any] = {"stem": Stem, "pool": Pool, "positions": Positions, "mlp": Mlp, "norm": Norm}
# SwiGLU has three matrices for two: two thirds of the hidden width, rounded up, as in DINOv2.
SWIGLU_STEP = 8


@dataclass(frozen=True)
class Shape:
    """How large a transformer is.

    Attributes:
        width: Of the tokens.
        depth: Blocks.
        heads: Of attention.
        mlp_ratio: Hidden width of the MLP over `width`.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


# Ti and S: Touvron et al. 2020 (https://arxiv.org/abs/2012.12877); B, L, H: Dosovitskiy et al. 2020
# (https://arxiv.org/abs/2010.11929); g: Zhai et al. 2021 (https://arxiv.org/abs/2106.04560), MLP of 6144.
SIZES: dict[str, Shape] = {
    "Ti": Shape(192, 12, 3),
    "S": Shape(384, 12, 6),
    "B": Shape(768, 12, 12),
    "L": Shape(1024, 24, 16),
    "H": Shape(1280, 32, 16),
    "g": Shape(1408, 40, 16, 48 / 11),
}


def shape_of(
    size: str, width: int | None, depth: int | None, heads: int | None, ratio: float | None
) -> Shape:
    """The published shape of a size, with what is given in place of its numbers.

    Raises:
        UsageError: There is no such size, or the numbers do not fit together.
    """
    if size not in SIZES:
        raise unknown_name("vit size", size, SIZES)
    named = SIZES[size]
    shape = Shape(
        named.width if width is None else width,
        named.depth if depth is None else depth,
        named.heads if heads is None else heads,
        named.mlp_ratio if ratio is None else ratio,
    )
    if shape.heads < 1 or shape.width < 1 or shape.width % shape.heads:
        raise UsageError(
            f"vit: width {shape.width} is not a multiple of heads {shape.heads}; "
            "give both, or a size by name: " + ", ".join(SIZES)
        )
    if shape.depth < 0:
        raise UsageError(f"vit: found depth {shape.depth}; give 0 or more")
    return shape


def hidden_width(shape: Shape, mlp: str, given: int | None) -> int:
    """Hidden width of the MLP: what is given, or by the ratio, for SwiGLU in DINOv2's rounding.

    Raises:
        UsageError: It is less than 1.
    """
    by_ratio = int(shape.width * shape.mlp_ratio)
    if mlp == "swiglu":
        by_ratio = (int(by_ratio * 2 / 3) + SWIGLU_STEP - 1) // SWIGLU_STEP * SWIGLU_STEP
    hidden = by_ratio if given is None else given
    if hidden < 1:
        raise UsageError(f"vit: the MLP would be {hidden} wide; give mlp_width or mlp_ratio above 0")
    return hidden


def check_options(options: Mapping[str, Any], shape: Shape) -> None:
    """Refuse a word that an option does not know, and options that make no module.

    Raises:
        UsageError: Says what was found and what is possible.
    """
    for option, known in NAMES.items():
        if options[option] not in get_args(known):
            raise unknown_name(f"vit {option}", str(options[option]), get_args(known))
    _check_pixels(options["image_size"], options["patch_size"], options["stem"])
    _check_numbers(options, shape)
    _check_pooling(options, shape.width)


def _check_pixels(image: int, patch: int, stem: str) -> None:
    if patch < 1 or image < 1 or image % patch:
        raise UsageError(f"vit: image_size {image} is not a multiple of patch_size {patch}")
    if stem == "conv" and (patch < 2 or patch & (patch - 1)):
        raise UsageError(f"vit: stem 'conv' halves the picture; found patch_size {patch}, give 2, 4, 8, ...")


def _check_numbers(options: Mapping[str, Any], shape: Shape) -> None:
    for name in ("registers", "position_grid", "embed_dim"):
        if options[name] < 0:
            raise UsageError(f"vit: found {name} {options[name]}; give 0 or more")
    if not 0 <= options["drop_path"] < 1:
        raise UsageError(f"vit: found drop_path {options['drop_path']}; give a share from 0 to below 1")
    turned = {"sincos_2d": ("width", shape.width), "rope_2d": ("a head's width", shape.width // shape.heads)}
    what, number = turned.get(options["positions"], ("", 0))
    if number % 4:
        raise UsageError(
            f"vit: positions {options['positions']!r} need {what} to be a multiple of 4, found {number}"
        )


def _check_pooling(options: Mapping[str, Any], width: int) -> None:
    if options["pool"] == "cls" and options["class_token"] is False:
        raise UsageError("vit: pool 'cls' reads the class token and class_token is false; drop one of them")
    if not options["projection"] and options["embed_dim"] not in (0, width):
        raise UsageError(
            f"vit: without a projection the vector has width {width}, found embed_dim "
            f"{options['embed_dim']}; leave embed_dim out, or set projection: true"
        )
