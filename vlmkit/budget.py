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

    def fit(self, sizes: Sequence[Size], count: Count, levels: int) -> list[SizedImage]:
        """Make the layout smaller for as few images as need it, the one with most tokens first.

        Args:
            sizes: (width, height) of a sample's images.
            count: Tokens of an image.
            levels: How often the layout can be made smaller.

        Raises:
            UsageError: The images cannot be made that small.
        """
        images = [_within([(*size, 0)], count, levels, self.per_image)[0] for size in sizes]
        return _within(images, count, levels, self.per_sample)


def _within(images: list[SizedImage], count: Count, levels: int, limit: int | None) -> list[SizedImage]:
    """Images that take no more than `limit` tokens together."""
    while limit is not None and sum(map(count, images)) > limit:
        by_tokens = sorted(range(len(images)), key=lambda i: -count(images[i]))
        smaller = ((i, _smaller(images[i], count, levels)) for i in by_tokens)
        found = next(((i, image) for i, image in smaller if image is not None), None)
        if found is None:
            raise _too_many(images, count, limit)
        images = [*images[: found[0]], found[1], *images[found[0] + 1 :]]
    return images


def _smaller(image: SizedImage, count: Count, levels: int) -> SizedImage | None:
    """The image at the next level at which it takes fewer tokens; None if there is none."""
    width, height, level = image
    # A level may change nothing for an image's shape.
    further = ((width, height, deeper) for deeper in range(level + 1, levels + 1))
    return next((other for other in further if count(other) < count(image)), None)


def _too_many(images: Sequence[SizedImage], count: Count, limit: int) -> UsageError:
    sizes = ", ".join(f"{width}x{height}" for width, height, _ in images[:5])
    return UsageError(
        f"{len(images)} image{'s' * (len(images) > 1)} ({sizes} pixels) may take {limit} tokens and cannot "
        f"take less than {sum(map(count, images))}; allow more in model.image_tokens, use a layout that can "
        "be made smaller (native, longest, qwen, anyres, tiles, split), or a connector with fewer tokens"
    )
