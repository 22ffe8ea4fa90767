"""Vectors that were computed once: by encoder fingerprint and by the content (an image's bytes, a text).

A renamed, copied or re-added file is not encoded again. It is a cache: deleting the file costs time, not
data. Patches are kept as float16, as engines store them; weighted terms cost less to count than to keep.

Shapes: N patches of an image, D numbers of each.
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
# A table with row ids: those without are slow with rows of several pages.
_PATCHES = """
CREATE TABLE IF NOT EXISTS patches (
    fingerprint TEXT NOT NULL, image_sha256 TEXT NOT NULL, width INTEGER NOT NULL, vectors BLOB NOT NULL,
    PRIMARY KEY (fingerprint, image_sha256)
)
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

    def get_patches(self, fingerprint: str, images_sha256: Sequence[str]) -> dict[str, Vectors]:
        """Those patches that are stored, (N, D) each, by image hash; float32 of float16's values.

        Raises:
            RetrievalError: The file is damaged.
        """
        query = "SELECT width, vectors FROM patches WHERE fingerprint = ? AND image_sha256 = ?"
        with self._connection() as db:
            if not _has_patches(db):
                return {}
            rows = {sha: db.execute(query, (fingerprint, sha)).fetchone() for sha in images_sha256}
        return {sha: self._decode_patches(*row) for sha, row in rows.items() if row is not None}

    def put_patches(self, fingerprint: str, patches: Mapping[str, Vectors]) -> None:
        """Store the patches (N, D) of a batch in one transaction, rounded to float16.

        Raises:
            RetrievalError: Patches have NaN or Inf, or the file is damaged.
        """
        rows = []
        for sha, patches_ND in patches.items():
            if not np.isfinite(patches_ND).all():
                raise RetrievalError(
                    f"the patches of image {sha[:12]} have NaN or Inf; check the encoder's weights"
                )
            blob = np.ascontiguousarray(patches_ND, "<f2").tobytes()
            rows.append((fingerprint, sha, patches_ND.shape[1], blob))
        with self._connection() as db, db:
            db.execute(_PATCHES)  # a store from before patches has no such table
            db.executemany("INSERT OR REPLACE INTO patches VALUES (?, ?, ?, ?)", rows)

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

    def _decode_patches(self, width: int, blob: bytes) -> Vectors:
        if width < 1 or not blob or len(blob) % (2 * width):
            raise RetrievalError(
                f"{self._path} is damaged ({len(blob)} bytes of patches, expected a multiple of "
                f"{2 * width}); delete it"
            )
        return np.frombuffer(blob, "<f2").astype(np.float32).reshape(-1, width)

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


def _has_patches(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'patches'").fetchone() is not None


def _is_new(db: sqlite3.Connection, path: Path) -> bool:
    # In this order: another process may make the store between the two lines.
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    if tables and owner != _APPLICATION_ID:
        raise RetrievalError(f"{path} is an SQLite database of another program; name another file")
    return not tables
