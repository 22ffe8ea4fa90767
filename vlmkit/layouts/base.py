"""The contract of an image layout: a rule for sizes, and the same rule applied to pixels.

Sizes are (width, height) in pixels as Pillow gives them; grids are (rows, columns) in patches. No torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from PIL import Image

Size = tuple[int, int]
Fill = tuple[int, ...]
Role = Literal["full", "tile", "thumbnail"]


@dataclass(frozen=True)
class View:
    """One picture that goes through the encoder.

    Attributes:
        rows, cols: Its grid of patches.
        height, width: In pixels; at the right and lower edge may be pixels that make no whole patch.
        role: `full` for the whole image at its place, `tile` for a cut-out, `thumbnail` for a small copy.
    """

    rows: int
    cols: int
    height: int
    width: int
    role: Role = "full"


@dataclass(frozen=True)
class Frame:
    """What an encoder states about the size of its views; see `VisionSpec`.

    Attributes:
        side: Side of a square view in pixels.
        patch: Side of a patch in pixels.
        shortest_edge: Shorter edge of the picture that `crop` cuts the centre from.
        max_patches: Most patches of a view of layout `native`.
    """

    side: int
    patch: int
    shortest_edge: int = 0
    max_patches: int = 0

    def square(self, role: Role = "full") -> View:
        """The view of `side` x `side` pixels."""
        return View(self.side // self.patch, self.side // self.patch, self.side, self.side, role)

    def grid(self, rows: int, cols: int, role: Role = "full") -> View:
        """The view of exactly `rows` x `cols` patches."""
        return View(rows, cols, rows * self.patch, cols * self.patch, role)


@dataclass(frozen=True)
class Alone:
    """The tokens of one view enter the sequence as they are.

    Attributes:
        view: Index of the view.
        newline: Whether one newline token follows.
    """

    view: int
    newline: bool = False


@dataclass(frozen=True)
class Mosaic:
    """The tokens of tiles are put together to one grid, cut to what shows the image, and written row by row.

    Attributes:
        first: Index of the first tile's view; the others follow row by row.
        rows, cols: Tiles below and beside each other.
        image_size: (width, height) of the image whose proportions the cut keeps.
        max_tiles: The grid is scaled down to about as many tokens as this many tiles have; 0 for never.
        newline: Whether one newline token ends each row.
    """

    first: int
    rows: int
    cols: int
    image_size: Size
    max_tiles: int = 0
    newline: bool = True


Piece = Alone | Mosaic


class Layout(ABC):
    """How an image becomes views; a frozen dataclass whose fields are the options of a recipe.

    Everything but `pictures` is a pure function of sizes, so that tokens are counted without pixels. `views`
    and `pictures` give the same number in the same order.
    """

    summary: ClassVar[str]
    # One number a scale; the features of several scales are joined channel by channel (see `scales.py`).
    scales: tuple[int, ...] = (1,)
    # Whether a learned newline token is part of what `pieces` states.
    newline: bool = False
    # Whether the only view shows the whole image from edge to edge, whatever its grid.
    edge_to_edge: ClassVar[bool] = False

    @abstractmethod
    def views(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """The pictures that go through the encoder, the one that shows the whole image first."""

    @abstractmethod
    def pictures(
        self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill
    ) -> list[Image.Image]:
        """The views' pixels: RGB pictures of the stated sizes.

        Args:
            image: RGB.
            frame: Of the encoder.
            resample: The encoder's interpolation.
            fill: The encoder's mean colour.
        """

    def whole(self, image: Image.Image, frame: Frame, resample: Image.Resampling, fill: Fill) -> Image.Image:
        """The first of `pictures`, which shows the whole image; a layout may make it without the others."""
        return self.pictures(image, frame, resample, fill)[0]

    def features(self, image_size: Size, frame: Frame) -> tuple[View, ...]:
        """The views as the connector gets them: `views`, unless several scales are joined to one."""
        return self.views(image_size, frame)

    def pieces(self, image_size: Size, frame: Frame) -> tuple[Piece, ...]:
        """How the tokens of `features` enter the sequence: by default view after view.

        A view that no piece names is encoded for the retrieval vector alone.
        """
        return tuple(Alone(i) for i in range(len(self.features(image_size, frame))))

    def agrees(self, frame: Frame, other: Layout, others: Frame) -> bool:
        """Whether two encoders see the same places of every image in the same views: for fusing features.

        Args:
            frame: Of the encoder with this layout.
            other, others: Layout and frame of the other encoder.
        """
        return (self.edge_to_edge and other.edge_to_edge) or (self == other and frame.side == others.side)

    def tiny_options(self) -> dict[str, Any]:
        """Options for an encoder at tiny size: in place of sizes in pixels or patches, such as fit to it."""
        return {}

    def smaller(self, frame: Frame) -> Self | None:
        """The next rule of the same kind that takes fewer tokens of a large image; None if there is none.

        By it a token budget is kept: a picture is made smaller, never cut off.
        """
        return None
