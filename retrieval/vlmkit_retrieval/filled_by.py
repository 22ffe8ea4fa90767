"""Which encoders fill an index: known by name and fingerprint, added, forgotten, and no other let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmkit_retrieval.encoders import Encoder, embeds_text, kind_of, width_of
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.manifest import EncoderEntry, Manifest
from vlmkit_retrieval.types import Engine, same_space

_BATCH = 1024


class FilledBy:
    """The part of an `Index` that knows its encoders.

    Attributes:
        path: The index's directory.
        manifest: What the index knows about itself.
        engine: Where points are stored.
    """

    path: Path
    manifest: Manifest
    engine: Engine

    def add_encoder(self, encoder: Encoder, reference: str | None = None, name: str | None = None) -> str:
        """Make room for an encoder's vectors; nothing happens if it is known already.

        Args:
            encoder: The encoder, of any kind (see `encoders.py`).
            reference: How to load it again, e.g. a run's directory; kept up to date when given.
            name: Its name in this index, where two encoders share `encoder.name`.

        Returns:
            The name of its vector.

        Raises:
            RetrievalError: Another encoder has this name, or this encoder another name.
        """
        name = self._enter(encoder, reference, name)
        self.engine.ensure(self.manifest.spaces())
        return name

    def _enter(self, encoder: Encoder, reference: str | None, name: str | None = None) -> str:
        """Note an encoder in the manifest; whoever opens the index next makes room for it, too."""
        fingerprint = encoder.fingerprint  # takes seconds for a large encoder
        known = self._name_of(encoder, fingerprint, name)
        if name is not None and known not in (None, name):
            raise RetrievalUsageError(
                f"index {self.path} has this very encoder, under the name {known!r}; use that name, or "
                f"forget it: vlmkit index forget-encoder {self.path} {known}"
            )
        name = known or name or encoder.name
        stored = self.manifest.encoders.get(name)
        if stored is None:
            kind = kind_of(encoder)
            text = kind != "patches"
            if kind == "image":
                text = embeds_text(encoder)  # type: ignore[arg-type]
            entry = EncoderEntry(fingerprint, width_of(encoder), reference or "", text, kind)
            self._check_spaces(name, entry)
        else:
            self._check_same(stored, fingerprint, name)
            entry = replace(stored, reference=stored.reference if reference is None else reference)
        if entry != stored:
            self.manifest.encoders[name] = entry
            self.manifest.save(self.path)
        return name

    def forget_encoder(self, name: str) -> None:
        """Remove an encoder with its vectors; all else stays. To replace one, forget it, then sync.

        A kill in between is no harm: whoever opens the index next finishes it.

        Raises:
            RetrievalUsageError: The index has no such encoder.
        """
        if name not in self.manifest.encoders:
            known = ", ".join(sorted(self.manifest.encoders)) or "none"
            raise RetrievalUsageError(f"index {self.path} has no encoder {name!r} (it has: {known})")
        if name not in self.manifest.dropping:  # the engine may have refused it before
            self.manifest.dropping.append(name)
            self.manifest.save(self.path)
        self._drop(name)

    def require_encoder(self, embedder: Encoder) -> str:
        """The name under which this very encoder fills the index.

        Raises:
            RetrievalError: The index was filled by others; the message says which, and what to do.
        """
        name = self._name_of(embedder, embedder.fingerprint, embedder.name)
        if name is None:
            known = "; ".join(f"{n} {_describe(e)}" for n, e in self.manifest.encoders.items()) or "none"
            raise RetrievalError(
                f"index {self.path} was not filled by encoder {embedder.name!r} (fingerprint "
                f"{embedder.fingerprint[:12]}); it has: {known}; use one of these, or sync with this one"
            )
        return name

    def encoder_references(self) -> list[str]:
        """How to load the image encoders of this index again, those that embed text first."""
        entries = [entry for entry in self.manifest.encoders.values() if entry.kind == "image"]
        return [entry.reference for entry in sorted(entries, key=lambda e: not e.text) if entry.reference]

    def _drop(self, name: str) -> None:
        """Take an encoder out of the engine, of every item's list, and of the manifest, in this order."""
        entry = self.manifest.encoders[name]
        for space in set(entry.spaces(name)) & set(self.engine.spaces()):
            self.engine.drop_space(space)
        ids = self.engine.ids()
        for start in range(0, len(ids), _BATCH):
            points = self.engine.retrieve(ids[start : start + _BATCH])
            lists = {id: point.payload.get("encoders") or {} for id, point in points.items()}
            self.engine.set_payload(
                {id: {"encoders": _without(of, name)} for id, of in lists.items() if name in of}
            )
        del self.manifest.encoders[name]
        self.manifest.dropping.remove(name)
        self.manifest.save(self.path)

    def _name_of(self, embedder: Encoder, fingerprint: str, wanted: str | None) -> str | None:
        """Under which name an encoder is known; that wanted, or its own, where there are several."""
        encoders = self.manifest.encoders
        same = [name for name, entry in encoders.items() if entry.fingerprint == fingerprint]
        return next((name for name in (wanted, embedder.name) if name in same), next(iter(same), None))

    def _check_same(self, stored: EncoderEntry, fingerprint: str, name: str) -> None:
        if stored.fingerprint == fingerprint:
            return
        raise RetrievalError(
            f"index {self.path}: encoder {name!r} is {_describe(stored)}, given is one with fingerprint "
            f"{fingerprint[:12]}; use the stored one, or give this one a name of its own (--encoder "
            "NAME=RUN; in Python name=), or forget the stored one: "
            f"vlmkit index forget-encoder {self.path} {name}"
        )

    def _check_spaces(self, name: str, entry: EncoderEntry) -> None:
        """Refuse a name whose spaces belong to others: once it is in the manifest, nobody could open it."""
        asked, stored = entry.spaces(name), self.engine.spaces()
        taken = set(asked) & set(self.manifest.spaces())
        taken |= {space for space in set(asked) & set(stored) if not same_space(stored[space], asked[space])}
        if taken:
            raise RetrievalUsageError(
                f"index {self.path}: there is a space {min(taken)!r}; add this encoder under another name"
            )


def _without(done: Mapping[str, str] | list[str], name: str) -> Any:
    """The encoders that are done with an item, without one; an index of schema 1 has a list of names."""
    if isinstance(done, Mapping):
        return {other: fingerprint for other, fingerprint in done.items() if other != name}
    return [other for other in done if other != name]


def _describe(entry: EncoderEntry) -> str:
    return f"fingerprint {entry.fingerprint[:12]} from {entry.reference or 'an unknown place'}"
