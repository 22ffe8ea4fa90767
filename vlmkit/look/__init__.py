"""Pictures of what an encoder or a vision-language model sees: `look`, behind `vlmkit look`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmkit.encoders.base import VisionEncoder, evaluating
from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit.look.draw import draw, require_plots
from vlmkit.look.panel import Options, Panel
from vlmkit.look.panels import PANELS
from vlmkit.look.scene import NotPossible, observe
from vlmkit.vlm import VLM

__all__ = ["PANELS", "Options", "Seen", "look"]


@dataclass(frozen=True)
class Seen:
    """What a picture shows.

    Attributes:
        panels: Names of what is drawn, in order.
        left_out: Names of what is not, and why.
    """

    panels: tuple[str, ...]
    left_out: dict[str, str]


def look(
    model: VisionEncoder | VLM,
    image: Image.Image,
    path: str | Path,
    options: Options | None = None,
    only: Sequence[str] | None = None,
    title: str = "image",
) -> Seen:
    """Draw what a model sees in an image.

    Args:
        model: An encoder, or a model with one; put in evaluation mode for the time.
        image: RGB.
        path: Where the PNG goes.
        options: What to show.
        only: Names from `PANELS`; None for all that the options allow.
        title: Of the whole picture, in front of sizes, encoder, layout and question.

    Raises:
        UsageError: A panel, layer, head, token or point does not exist, or does not go with the model.
        VlmkitError: No panel is possible; the message says why.
        MissingExtraError: matplotlib is not installed.
    """
    require_plots()
    options = options or Options()
    vlm = model if isinstance(model, VLM) else None
    encoder = model.vision_encoder if isinstance(model, VLM) else model
    names = _names(only, options, vlm)
    drawn: dict[str, list[Panel]] = {}
    left_out: dict[str, str] = {}
    with evaluating(model):
        scene = observe(encoder, image)
        for panel in names:
            try:
                drawn[panel] = PANELS[panel](scene, options, vlm)
            except NotPossible as reason:
                left_out[panel] = str(reason)
    if not drawn:
        raise VlmkitError("; ".join(f"{panel}: {reason}" for panel, reason in left_out.items()))
    asked = f'; asked: "{options.question}"' if "answer" in drawn else ""
    size = f"{image.width} x {image.height} px"
    header = f"{title}; image of {size}, encoder {encoder.name}, layout {encoder.spec.layout}{asked}"
    draw([panel for group in drawn.values() for panel in group], scene.roles, header, Path(path))
    return Seen(tuple(drawn), left_out)


def _names(only: Sequence[str] | None, options: Options, vlm: VLM | None) -> list[str]:
    if options.question is not None and vlm is None:
        raise UsageError("an encoder answers no question; give the run of a model with a language model")
    if only is None:
        return [name for name in PANELS if name != "answer" or options.question is not None]
    for name in only:
        if name not in PANELS:
            raise unknown_name("panel", name, PANELS)
    if "answer" in only and options.question is None:
        raise UsageError("the panel 'answer' needs a question: --question TEXT")
    return [name for name in PANELS if name in only]
