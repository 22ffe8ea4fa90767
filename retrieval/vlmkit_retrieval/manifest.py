"""The file that makes a directory an index: which engine, which encoders, which folders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit_retrieval.encoders import KINDS, EncoderKind, spaces_of
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.json_file import write_json
from vlmkit_retrieval.types import Space

MANIFEST = "vlmkit-index.json"
SCHEMA = 2
# Schema 1 knew image encoders and image files alone, which is what the new keys say where they are absent.
READABLE = (1, 2)


@dataclass(frozen=True)
class EncoderEntry:
    """An encoder whose vectors are in the index.

    Attributes:
        fingerprint: Hash of everything that changes its vectors.
        dim: Width of its vectors; 0 of weighted terms.
        reference: How to load it again, e.g. a run's directory; empty where unknown.
        text: Whether a text can be searched for in its space.
        kind: What it takes of an item (see `encoders.py`).
    """

    fingerprint: str
    dim: int
    reference: str
    text: bool
    kind: EncoderKind = "image"

    def spaces(self, name: str) -> dict[str, Space]:
        """The engine's spaces that it fills."""
        return spaces_of(name, self.kind, self.dim)


@dataclass
class Manifest:
    """What an index knows about itself.

    Attributes:
        engine: Location of the engine; a relative one lies in the index's directory.
        encoders: By the name of their vector.
        roots: Folders and files that were synced, absolute.
        kinds: Kinds of files that were synced; names in `sources.SOURCES`.
        dropping: Encoders that are being forgotten; whoever opens the index next finishes it.
    """

    engine: str = "engine"
    encoders: dict[str, EncoderEntry] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    dropping: list[str] = field(default_factory=list)

    def spaces(self) -> dict[str, Space]:
        """The engine's spaces that all encoders fill."""
        return {
            space: form for name, entry in self.encoders.items() for space, form in entry.spaces(name).items()
        }

    def save(self, directory: Path) -> None:
        """Replace the file in one step; needs the index's lock."""
        write_json(directory / MANIFEST, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of an index; one of schema 1 becomes schema 2 here, on the disk when saved.

        Raises:
            RetrievalError: Not an index, a newer schema, or a damaged file.
        """
        path = directory / MANIFEST
        try:
            return cls._parse(json.loads(path.read_text("utf-8")), path)
        except (FileNotFoundError, NotADirectoryError):
            raise RetrievalUsageError(
                f"{directory} is not an index (it has no {MANIFEST}); make one: vlmkit index sync INDEX PATH"
            ) from None
        except (
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            json.JSONDecodeError,
            UnicodeDecodeError,
        ) as error:
            raise RetrievalError(
                f"{path} cannot be read ({error!r}); restore it, or sync into a new index"
            ) from error

    @classmethod
    def _parse(cls, stored: dict[str, Any], path: Path) -> Manifest:
        if stored["schema"] not in READABLE:
            raise RetrievalError(
                f"{path} has schema {stored['schema']}, this vlmkit reads {READABLE[0]} to {READABLE[-1]}; "
                "update vlmkit, or sync into a new index"
            )
        encoders = {name: EncoderEntry(**entry) for name, entry in stored["encoders"].items()}
        if any(entry.kind not in KINDS for entry in encoders.values()):
            raise KeyError("kind")
        kinds = list(stored.get("kinds", ["images"] if stored["roots"] else []))
        return cls(stored["engine"], encoders, list(stored["roots"]), kinds, list(stored.get("dropping", [])))
