"""An encoder on its own, for an index: out of a run, or by name and weights."""

from __future__ import annotations

from pathlib import Path

from vlmkit.checkpoint import load_part, require_model
from vlmkit.config import VLMConfig, build_encoder
from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.encoders.base import VisionEncoder
from vlmkit.errors import UsageError


def load_encoder(reference: str | Path) -> VisionEncoder:
    """Load only the encoder that a reference names.

    Args:
        reference: A run's directory, or `FAMILY:WEIGHTS`, e.g. `clip:openai/clip-vit-base-patch16`.

    Raises:
        UsageError: It is neither.
    """
    path = Path(reference)
    if path.is_dir():
        require_model(path)
        config = VLMConfig.from_pretrained(path)
        encoder = build_encoder(config.encoders[0])
        load_part(encoder, path, "encoders.0.")
        return encoder.eval()
    family, _, weights = str(reference).partition(":")
    if family in ENCODERS and weights:
        return encoder_class(family).from_options(weights=weights).eval()
    raise UsageError(
        f"{str(reference)!r} is neither a run's directory nor FAMILY:WEIGHTS "
        f"(families: {', '.join(ENCODERS)}), e.g. clip:openai/clip-vit-base-patch16"
    )
