"""An encoder on its own, for an index: out of a run, or by name and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.checkpoint import load_part, no_run, other_model, require_model
from vlmkit.config import VLMConfig, build_encoder
from vlmkit.encoders import ENCODERS, encoder_class, family_of
from vlmkit.encoders.base import VisionEncoder
from vlmkit.errors import UsageError


def load_encoder(reference: str | Path, **options: Any) -> VisionEncoder:
    """Load only the encoder that a reference names.

    Args:
        reference: A run's directory, or `FAMILY:WEIGHTS`, e.g. `clip:openai/clip-vit-base-patch16`.
        options: Of the encoder, as in a recipe, for `FAMILY:WEIGHTS`; those of a run are stored.

    Raises:
        UsageError: It is neither, an option does not fit, or there are options for a run.
    """
    path = Path(reference)
    if path.is_dir():
        kind = other_model(path)
        if kind is not None:
            raise no_run(path, kind, family_of(kind) or "FAMILY")
        if options:
            raise UsageError(f"{path} is a run, its options are stored; leave out {', '.join(options)}")
        require_model(path)
        config = VLMConfig.from_pretrained(path)
        encoder = build_encoder(config.encoders[0])
        load_part(encoder, path, "encoders.0.")
        return encoder.eval()
    family, _, weights = str(reference).partition(":")
    if family in ENCODERS and weights:
        return encoder_class(family).from_options(**{**options, "weights": weights}).eval()
    raise UsageError(
        f"{str(reference)!r} is neither a run's directory nor FAMILY:WEIGHTS "
        f"(families: {', '.join(ENCODERS)}), e.g. clip:openai/clip-vit-base-patch16"
    )
