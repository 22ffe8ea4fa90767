"""Preprocessing as transformers knows it: `VisionSpec`s behind the interface of an image processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from vlmkit.budget import Fit, unlimited
from vlmkit.data.batch import RowImages, image_tensors, row_images
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, unknown_name
from vlmkit.messages import ImageSource, read_image

Images = ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource]] | None
# What transformers writes beside the fields of the spec.
FOREIGN = ("image_processor_type", "processor_class")


class VLMImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Images to views by Pillow; neither torchvision nor weights are needed.

    A token budget is kept where it is part of a `Processor`, which knows how many tokens an image takes.

    Args:
        specs: The rules of each encoder, as `VisionSpec` or as dictionaries of its fields.
        **foreign: What transformers writes beside them.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012

    def __init__(self, specs: Sequence[VisionSpec | dict[str, Any]], **foreign: Any) -> None:
        super().__init__()
        for name in foreign:
            if name not in FOREIGN:
                raise unknown_name("field of processor_config.json", name, ("specs", *FOREIGN))
        self.specs = [spec if isinstance(spec, VisionSpec) else _spec(spec) for spec in specs]
        # Set by the processor that knows how many tokens an image takes.
        self.fit: Fit = unlimited

    def preprocess(self, images: Images, **options: Any) -> BatchFeature:
        """Images to the image inputs of a `VLM`.

        Args:
            images: One image, a list with one image a row, or a list of rows of images.
            **options: Only what changes nothing, see `check_options`.

        Returns:
            `pixel_values` float32 (B, P) and `image_sizes` int64 (B, K, 3) as in `vlmkit.data.batch.Batch`;
            nothing if there is no image.

        Raises:
            VlmkitError: An image cannot be read, or an option is not possible.
        """
        check_options(options)
        rows, _ = _rows(images)
        return BatchFeature(image_tensors([self.row(row) for row in rows]) if rows else {})

    def row(self, images: Sequence[Image.Image]) -> RowImages:
        """The images of one row."""
        return row_images(images, self.fit([image.size for image in images]), self.specs)

    def to_dict(self) -> dict[str, Any]:
        """The specs' fields, and the name of this class."""
        return {"specs": [asdict(spec) for spec in self.specs], "image_processor_type": type(self).__name__}


def _spec(fields: dict[str, Any]) -> VisionSpec:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return VisionSpec(**{**fields, **lists})


def deal_images(images: Images, slots: Sequence[int]) -> list[list[Image.Image]]:
    """The images of each prompt.

    Args:
        images: One, a flat list that is dealt to the prompts in order, or a list for each prompt.
        slots: How many images each prompt has a place for.

    Raises:
        UsageError: Images and places differ in number.
    """
    rows, nested = _rows(images)
    given = [len(row) for row in rows] if nested else len(rows)
    wanted = list(slots) if nested else sum(slots)
    if given != wanted:
        raise UsageError(
            f"the text has {wanted} image placeholders and {given} images were given; "
            "write one placeholder for each image, or use chat messages"
        )
    queue = (image for row in rows for image in row)
    return [[next(queue) for _ in range(places)] for places in slots]


def _rows(images: Images) -> tuple[list[list[Image.Image]], bool]:
    """Images row by row, and whether they came in rows; an image that came alone is a row."""
    if images is None:
        return [], False
    listed: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    nested = any(isinstance(own, list | tuple) for own in listed)
    rows = [own if isinstance(own, list | tuple) else [own] for own in listed]
    return [[read_image(image) for image in row] for row in rows], nested


# Options of transformers' processors that callers pass by habit, with the values that change nothing here.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "padding": (True, "longest"),
    "padding_side": ("left",),
    "truncation": (False, None),
    "return_tensors": ("pt", "auto", None),
    "continue_final_message": (False, None),
    "chat_template": (None,),
    "tools": (None,),
    "documents": (None,),
    "videos": (None,),
    "audio": (None,),
}


def check_options(options: dict[str, Any]) -> None:
    """Refuse an option that would have to change the result.

    Raises:
        UsageError: With what is possible.
    """
    for name, value in options.items():
        if name not in NEUTRAL:
            raise UsageError(f"the option {name!r} is not possible; known: {', '.join(NEUTRAL)}")
        if value not in NEUTRAL[name]:
            raise UsageError(
                f"{name}={value!r} is not possible; possible: {', '.join(map(repr, NEUTRAL[name]))}"
            )
