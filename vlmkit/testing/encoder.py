"""`check_encoder`: does a class keep the promises of a `VisionEncoder`?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from vlmkit.encoders.base import VisionEncoder
from vlmkit.errors import UsageError, unknown_name
from vlmkit.testing.report import Outcome, Report, Row, skipped
from vlmkit.testing.subject import ImageReference, Subject, TextReference
from vlmkit.testing.table import CHECKS, Check
from vlmkit.testing.twin import make_weights_matter

SEED = 0


def check_encoder(
    encoder: type[VisionEncoder] | VisionEncoder,
    options: Mapping[str, Any] | None = None,
    *,
    weights: str | None = None,
    reference: ImageReference | None = None,
    text_reference: TextReference | None = None,
    only: Iterable[str] = (),
    no_reference: str = "",
) -> Report:
    """Run every check of `CHECKS` on an encoder, and state what was measured.

    In a test of your own: `check_encoder(MyEncoder).raise_for_failures()`. A class is built with tiny random
    weights, of a size with which mistakes are seen; an encoder that is built is checked as it is, in float32.

    Args:
        encoder: The class, or an encoder that is built; it is not changed.
        options: Arguments for a class, over those of its `tiny_options` where it states them. With `weights`
            among them those are loaded, and left as they are.
        weights: The published weights that a built encoder has; their image processor is compared.
        reference: Pictures to the retrieval vectors (B, E) that they should have.
        text_reference: Texts to the vectors (N, E) that they should have.
        no_reference: Why there is no `reference`, for the report.
        only: Names of the checks to run, and those that they need; all if there are none.

    Raises:
        UsageError: There is no such check or option, or the class states no tiny twin and no options are
            given.
        VlmkitError: The weights cannot be read.
    """
    chosen = _chosen(only)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        built = encoder if isinstance(encoder, VisionEncoder) else _build(encoder, options)
        found = weights or (options or {}).get("weights")
        why = no_reference or Subject.no_reference
        draft = Subject(built, found, reference, text_reference, why)
        subject = replace(draft, encoder=draft.copy().eval().float())
        outcomes: dict[str, Outcome] = {}
        for name, check in chosen.items():
            torch.manual_seed(SEED)
            outcomes[name] = _run(check, subject, outcomes)
    rows = [Row(n, CHECKS[n].about, o.status, o.measured, o.limit) for n, o in outcomes.items()]
    source = found or ("tiny random weights" if isinstance(encoder, type) else "weights as given")
    return Report(_described(subject, source), tuple(rows))


def _build(cls: type[VisionEncoder], options: Mapping[str, Any] | None) -> VisionEncoder:
    if options and "weights" in options:
        return cls.from_options(**options)
    encoder = cls.from_options(**{**_tiny(cls, options), **(options or {})})
    make_weights_matter(encoder)
    return encoder


def _tiny(cls: type[VisionEncoder], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of the tiny twin; options that are given are enough where the class states none."""
    try:
        return cls.tiny_options()
    except UsageError:
        if options is None:
            raise
        return {}


def _chosen(only: Iterable[str]) -> dict[str, Check]:
    """The checks of the table that are wanted, and those that they need."""
    wanted = set(only)
    for name in wanted:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
    wanted |= {need for name in wanted for need in CHECKS[name].needs}
    return {name: check for name, check in CHECKS.items() if not wanted or name in wanted}


def _run(check: Check, subject: Subject, before: Mapping[str, Outcome]) -> Outcome:
    missing = [name for name in check.needs if before[name].status != "passed"]
    if missing:
        return skipped(f"needs {', '.join(missing)}")
    try:
        return check.run(subject)
    except Exception as error:  # what a stranger's code raises is what the check found
        said = " ".join(str(error).split())
        return Outcome("failed", f"raised {type(error).__name__}: {said}", "no error")


def _described(subject: Subject, source: str) -> str:
    encoder = subject.encoder
    number = sum(p.numel() for p in encoder.parameters())
    return f"{type(encoder).__module__}:{type(encoder).__name__} ({number:,} parameters, {source})"
