"""Token budgets: an image that takes too many tokens is made smaller, never cut off.

Knows sizes and counts alone: no torch, no pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmkit.errors import UsageError
from vlmkit.layouts import Size

# (width, height) in pixels, and how often the layout is made smaller for this image (`VisionSpec.at`).
SizedImage = tuple[int, int, int]
Count = Callable[[SizedImage], int]
Fit = Callable[[Sequence[Size]], list[SizedImage]]


def unlimited(sizes: Sequence[Size]) -> list[SizedImage]:
    """Images as they are."""
    return [(*size, 0) for size in sizes]


@dataclass(frozen=True)
class Budget:
    """Most image tokens.

    Attributes:
        per_image: Of one image; None for no limit.
        per_sample: Of all images of a sample (a row of the batch) together; None for no limit.
    """

    per_image: int | None = None
    per_sample: int | None = None

    def fit(self, sizes: Sequence[Size], count: Count) -> list[SizedImage]:
        """Make the layout smaller for as few images as need it, the one with most tokens first.

        Args:
            sizes: (width, height) of a sample's images.
            count: Tokens of an image.

        Raises:
            UsageError: The images cannot be made that small.
        """
        images = [self._alone(size, count) for size in sizes]
        while self.per_sample is not None and sum(map(count, images)) > self.per_sample:
            largest = max(range(len(images)), key=lambda i: count(images[i]))
            images[largest] = _smaller(images[largest], count, self.per_sample, len(images))
        return images

    def _alone(self, size: Size, count: Count) -> SizedImage:
        image = (*size, 0)
        while self.per_image is not None and count(image) > self.per_image:
            image = _smaller(image, count, self.per_image, 1)
        return image


def _smaller(image: SizedImage, count: Count, limit: int, images: int) -> SizedImage:
    """The next level at which the image takes fewer tokens; a level may change nothing for its shape."""
    width, height, level = image
    tokens = count(image)
    # A rule that has no smaller form stays as it is: then so does the count, for good.
    for further in range(level + 1, level + LEVELS):
        if count((width, height, further)) < tokens:
            return width, height, further
    raise UsageError(
        f"{images} image{'s' * (images > 1)} may take {limit} tokens; one of {width}x{height} pixels takes "
        f"{tokens} at the least; allow more in model.image_tokens, or use a layout that can be made smaller "
        "(native, anyres, tiles, split) or a connector with fewer tokens"
    )


# Levels without effect that are looked through: more than a layout has.
LEVELS = 64
