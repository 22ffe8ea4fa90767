"""The SQLite file of a record manager: its tables, its transactions, its clock."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from vlmkit_retrieval.errors import RetrievalError

_APPLICATION_ID = 0x766C6D72  # "vlmr": tells our file from any other SQLite database
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    namespace TEXT NOT NULL, key TEXT NOT NULL, group_id TEXT, updated_at REAL NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_time ON records (namespace, updated_at);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), last REAL NOT NULL);
INSERT OR IGNORE INTO clock VALUES (1, 0);
"""
_TICK = 1e-6  # seconds; a float64 of today's time resolves 2.4e-7


class RecordFile:
    """A file that several processes may use at once.

    Args:
        path: Made where absent, by `make`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def make(self) -> None:
        """Make the tables where they are not.

        Raises:
            RetrievalError: The file is damaged, or of another program.
        """
        with self.reading() as db:
            _check_ours(db, self._path)
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID}; COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which no other writer comes into."""
        with self.reading() as db, db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one call, so that the object can cross threads and forks."""
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise RetrievalError(
                f"record manager {self._path}: {error}; check the disk and its permissions, or name a new one"
            ) from error


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    # In this order: another process may make the tables between the two lines.
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    if tables and owner != _APPLICATION_ID:
        raise RetrievalError(f"{path} is an SQLite database of another program; name another file")


def tick(db: sqlite3.Connection) -> float:
    """The clock's next time, kept for all who come later."""
    last = float(db.execute("SELECT last FROM clock").fetchone()[0])
    now = max(time.time(), last + _TICK)
    db.execute("UPDATE clock SET last = ?", (now,))
    return now
