"""Bytes by key in a SQLite file that several processes use at once.

It is a cache: deleting the file costs time, not data.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError

_TABLE = "CREATE TABLE IF NOT EXISTS blobs (key BLOB PRIMARY KEY, content BLOB NOT NULL)"


class Blobs:
    """A file of blobs.

    The connection is opened by the process that uses it: one that a fork copied must not be used.

    Args:
        path: The file; created with its folder where absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, sqlite3.Connection] | None = None

    def get(self, key: bytes) -> bytes | None:
        """The content, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those that are stored.

        Raises:
            VlmkitError: The file is damaged.
        """
        query = "SELECT content FROM blobs WHERE key = ?"
        with self._connection() as db:
            found = {key: db.execute(query, (key,)).fetchone() for key in keys}
        return {key: row[0] for key, row in found.items() if row is not None}

    def put_many(self, contents: Mapping[bytes, bytes]) -> None:
        """Store all of them or, if the process dies, none; what is there stays.

        Raises:
            VlmkitError: The disk is full, or the file is damaged.
        """
        with self._connection() as db, db:
            db.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?)", contents.items())

    def bytes_on_disk(self) -> int:
        """Size of the file, and of what was written and is not in it yet."""
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process opens the file anew."""
        return {**self.__dict__, "_open": None}

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._open is None or self._open[0] != os.getpid():
                self._open = (os.getpid(), self._connect())
            yield self._open[1]
        except sqlite3.Error as error:
            raise VlmkitError(
                f"{self.path}: {error}; make room on the disk, or delete the file: it is only a cache"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The training thread is one at a time, but need not be the one that opened the file.
        db = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may lose the last rows, never damage the file.
        db.execute("PRAGMA synchronous = NORMAL")
        with db:
            db.execute(_TABLE)
        return db
