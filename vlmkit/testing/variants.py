"""The encoder under check in another layout than its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.batch import SeveralSizesError
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts import LAYOUTS
from vlmkit.testing.subject import Subject, look
from vlmkit.testing.twin import picture

WIDE = (200, 120)
# An encoder for squares may take one of them by chance.
PROPORTIONS = [WIDE, (90, 90), (60, 140), (30, 200)]
# Rebuilding a large encoder takes long, and what layouts it takes does not depend on its weights.
LARGE = 50_000_000


def is_large(subject: Subject) -> bool:
    """Whether the encoder is tried in its own layout alone."""
    return sum(p.numel() for p in subject.encoder.parameters()) > LARGE


def other_layouts(subject: Subject) -> list[str]:
    """Names of the layouts that could take the place of the encoder's own."""
    own = type(subject.encoder.spec.rule)
    return [name for name, layout in LAYOUTS.items() if layout is not own and not is_large(subject)]


def in_layout(subject: Subject, name: str) -> VisionEncoder | None:
    """The encoder with another layout; None where it refuses it, or the views that it makes.

    A refusal is a `UsageError` of the constructor or of `check_views`, and what `pixels_ICHW` says of views
    of several sizes. Squares of the encoder's own side are no reason for one.

    Raises:
        VlmkitError: Pictures raised anything else, or such squares were refused; names the layout.
    """
    spec = subject.encoder.spec
    stated: dict[str, Any] = {"type": name}
    if name == "native" and not spec.max_patches:
        stated |= {"max_patches": (spec.image_size // spec.patch_size) ** 2}
    try:
        encoder = _with(subject, stated)
        encoder.check_views()
    except UsageError as error:
        _agree(subject, name, stated, error)
        return None
    for size in PROPORTIONS:
        try:
            look(encoder, [picture(size)])
        except SeveralSizesError as error:
            _agree(subject, name, stated, error)
            return None
        except Exception as error:  # what a stranger's forward raises is a finding
            said = " ".join(str(error).split())
            raise VlmkitError(f"in layout {name}: raised {type(error).__name__}: {said}") from error
    return encoder


def _with(subject: Subject, stated: dict[str, Any]) -> VisionEncoder:
    """Rebuilt with the layout; one that has no such argument gets it by its spec."""
    if "layout" in subject.encoder.config:
        return subject.rebuilt(layout=stated)
    encoder = copy.copy(subject.encoder)
    encoder.spec = replace(encoder.spec, layout=stated)
    return encoder


def _agree(subject: Subject, name: str, stated: dict[str, Any], error: VlmkitError) -> None:
    """Agree to a refusal, unless the views are such as the encoder takes in its own layout."""
    spec = subject.encoder.spec
    try:
        made = replace(spec, layout=stated)
    except UsageError:
        return  # the layout does not fit the numbers of the spec
    views = [view for size in PROPORTIONS for view in made.views(size)]
    if all((view.height, view.width) == (spec.image_size, spec.image_size) for view in views):
        raise VlmkitError(f"in layout {name}: squares of its own side are refused: {error}") from error


def oblong(subject: Subject) -> VisionEncoder | None:
    """The encoder with views that follow the picture's proportions; None where it takes square ones only."""
    view = subject.encoder.spec.views(WIDE)[0]
    if view.rows != view.cols:
        return subject.encoder
    return in_layout(subject, "native") if "native" in other_layouts(subject) else None
