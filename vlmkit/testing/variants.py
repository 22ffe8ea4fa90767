"""The encoder under check in another layout than its own."""

from __future__ import annotations

from typing import Any

from vlmkit.encoders.base import VisionEncoder
from vlmkit.layouts import LAYOUTS
from vlmkit.testing.subject import Subject, look
from vlmkit.testing.twin import picture

WIDE = (200, 120)
# An encoder for squares may take one of them by chance.
PROPORTIONS = [WIDE, (90, 90), (60, 140), (30, 200)]
# Rebuilding a large encoder takes long, and what layouts it takes does not depend on its weights.
LARGE = 50_000_000


def other_layouts(subject: Subject) -> list[str]:
    """Names of the layouts that could take the place of the encoder's own."""
    large = sum(p.numel() for p in subject.encoder.parameters()) > LARGE
    if large or "layout" not in subject.encoder.config:
        return []
    own = type(subject.encoder.spec.rule)
    return [name for name, layout in LAYOUTS.items() if layout is not own]


def in_layout(subject: Subject, name: str) -> VisionEncoder | None:
    """The encoder with another layout; None where it refuses it, or the views that it makes."""
    spec = subject.encoder.spec
    stated: dict[str, Any] = {"type": name}
    if name == "native" and not spec.max_patches:
        stated |= {"max_patches": (spec.image_size // spec.patch_size) ** 2}
    try:
        encoder = subject.rebuilt(layout=stated)
        encoder.check_views()
        for size in PROPORTIONS:
            look(encoder, [picture(size)])
    except (ValueError, RuntimeError, NotImplementedError):
        return None
    return encoder


def oblong(subject: Subject) -> VisionEncoder | None:
    """The encoder with views that follow the picture's proportions; None where it takes square ones only."""
    view = subject.encoder.spec.views(WIDE)[0]
    if view.rows != view.cols:
        return subject.encoder
    return in_layout(subject, "native") if "native" in other_layouts(subject) else None
