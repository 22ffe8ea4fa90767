"""Vectors that were computed once: by encoder fingerprint and by the bytes of the image.

A renamed, copied or re-added file is not encoded again. It is a cache: deleting the file costs time, not
data.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.types import Vectors

_APPLICATION_ID = 0x766C6D6B  # "vlmk": tells our file from any other SQLite database
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    fingerprint TEXT NOT NULL, image_sha256 TEXT NOT NULL, width INTEGER NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (fingerprint, image_sha256)
) WITHOUT ROWID
"""


class FeatureStore:
    """A SQLite file of float32 vectors; several processes may use it at once.

    A connection lives for one call only, so that the object can cross threads and forks.

    Args:
        path: The file; created where absent.

    Raises:
        RetrievalError: The file is damaged or something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        with self._connection() as db:
            if _is_new(db, self._path):
                db.execute("PRAGMA journal_mode = WAL")
                # One transaction, so that a second process sees either nothing or the whole store.
                db.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA}; PRAGMA application_id = {_APPLICATION_ID}; COMMIT"
                )

    def get(self, fingerprint: str, image_sha256: str) -> Vectors | None:
        """The stored vector of shape (width,), or None."""
        return self.get_many(fingerprint, [image_sha256]).get(image_sha256)

    def put(self, fingerprint: str, image_sha256: str, vector: Vectors) -> None:
        """Store one vector; the same key again replaces it."""
        self.put_many(fingerprint, {image_sha256: vector})

    def get_many(self, fingerprint: str, images_sha256: Sequence[str]) -> dict[str, Vectors]:
        """Those vectors that are stored, by image hash.

        Raises:
            RetrievalError: The file is damaged.
        """
        query = "SELECT width, vector FROM vectors WHERE fingerprint = ? AND image_sha256 = ?"
        with self._connection() as db:
            rows = {sha: db.execute(query, (fingerprint, sha)).fetchone() for sha in images_sha256}
        return {sha: self._decode(*row) for sha, row in rows.items() if row is not None}

    def put_many(self, fingerprint: str, vectors: Mapping[str, Vectors]) -> None:
        """Store a batch in one transaction: all of it or none.

        Raises:
            RetrievalError: A vector has NaN or Inf, or the file is damaged.
        """
        rows = []
        for sha, vector in vectors.items():
            if not np.isfinite(vector).all():
                raise RetrievalError(
                    f"the vector of image {sha[:12]} has NaN or Inf; check the encoder's weights"
                )
            rows.append((fingerprint, sha, vector.size, np.ascontiguousarray(vector, "<f4").tobytes()))
        with self._connection() as db, db:
            db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)

    def copy_to(self, other: FeatureStore) -> None:
        """Replace the content of another store by this one's."""
        with self._connection() as mine, other._connection() as theirs:
            mine.backup(theirs)

    def _decode(self, width: int, blob: bytes) -> Vectors:
        if len(blob) != 4 * width:
            raise RetrievalError(
                f"{self._path} is damaged ({len(blob)} bytes, expected {4 * width}); delete it"
            )
        return np.frombuffer(blob, "<f4").astype(np.float32)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One connection; it waits up to 60 s for other writers."""
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as db:
                yield db
        except sqlite3.OperationalError as error:  # the disk is full, not writable, or locked for too long
            raise RetrievalError(
                f"feature store {self._path}: {error}; check the disk and its permissions"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RetrievalError(
                f"{self._path} is no feature store, or damaged ({error}); delete it, it is only a cache"
            ) from error


def _is_new(db: sqlite3.Connection, path: Path) -> bool:
    # In this order: another process may make the store between the two lines.
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    if tables and owner != _APPLICATION_ID:
        raise RetrievalError(f"{path} is an SQLite database of another program; name another file")
    return not tables
