"""The file that makes a directory an index: which engine, which encoders, which folders."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError

MANIFEST = "vlmkit-index.json"
SCHEMA = 1


@dataclass(frozen=True)
class EncoderEntry:
    """An encoder whose vectors are in the index.

    Attributes:
        fingerprint: Hash of everything that changes its vectors.
        dim: Width of its vectors.
        reference: How to load it again, e.g. a run's directory; empty where unknown.
        text: Whether it embeds text too.
    """

    fingerprint: str
    dim: int
    reference: str
    text: bool


@dataclass
class Manifest:
    """What an index knows about itself.

    Attributes:
        engine: Location of the engine; a relative one lies in the index's directory.
        encoders: By the name of their vector.
        roots: Folders and files that were synced, absolute.
    """

    engine: str = "engine"
    encoders: dict[str, EncoderEntry] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Replace the file in one step: a reader sees the old one or the new one."""
        new = directory / f".{MANIFEST}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA, **asdict(self)}, file, indent=2, ensure_ascii=False, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(directory / MANIFEST)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of an index.

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
        if stored["schema"] != SCHEMA:
            raise RetrievalError(
                f"{path} has schema {stored['schema']}, this vlmkit reads {SCHEMA}; update vlmkit, "
                "or sync into a new index"
            )
        encoders = {name: EncoderEntry(**entry) for name, entry in stored["encoders"].items()}
        return cls(stored["engine"], encoders, list(stored["roots"]))
