"""LangChain's record manager in one SQLite file: which documents were written, when, from which source."""

from __future__ import annotations

import os
from collections.abc import Sequence

from langchain_core.indexing import RecordManager
from langchain_core.runnables.config import run_in_executor

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain.record_file import RecordFile, tick

# A refresh states no groups, and must not take a record out of the group by which it will be cleaned up.
_KEEP_GROUP = """
INSERT INTO records VALUES (?, ?, NULL, ?)
ON CONFLICT DO UPDATE SET updated_at = excluded.updated_at
"""
_SET_GROUP = """
INSERT INTO records VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET updated_at = excluded.updated_at, group_id = excluded.group_id
"""


class VlmkitRecordManager(RecordManager):
    """Keeps what `langchain_core.indexing.index` must know between runs; several processes may use the file.

    Its clock never stands still and never goes back, also where the machine's does, so that what a run wrote
    is always later than its start. A call of `update` or `delete_keys` is written whole or not at all.

    Args:
        namespace: Whose records: one name for each store.
        path: The file; made where absent.

    Raises:
        RetrievalError: The file is damaged, or of another program.
    """

    def __init__(self, namespace: str, path: str | os.PathLike[str]) -> None:
        super().__init__(namespace)
        self._file = RecordFile(path)
        self.create_schema()

    def create_schema(self) -> None:
        """Make the tables; done already when the object is made, and no error again."""
        self._file.make()

    def get_time(self) -> float:
        """Seconds since 1970, later than any time that was given before."""
        with self._file.writing() as db:
            return tick(db)

    def update(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        """Note that documents are there, as of now.

        Args:
            keys: Of the documents.
            group_ids: The source of each; a record keeps the one it has where none are given.
            time_at_least: A time that this clock gave before.

        Raises:
            RetrievalUsageError: More or fewer groups than keys, or a time that is yet to come.
        """
        if group_ids is not None and len(group_ids) != len(keys):
            raise RetrievalUsageError(
                f"{len(keys)} keys with {len(group_ids)} group_ids; give one group to every key, or none"
            )
        with self._file.writing() as db:
            now = tick(db)
            if time_at_least is not None and time_at_least > now:
                raise RetrievalUsageError(
                    f"time_at_least is {time_at_least - now:.6f} seconds in the future; take it from "
                    "get_time() of this record manager"
                )
            if group_ids is None:
                db.executemany(_KEEP_GROUP, [(self.namespace, key, now) for key in keys])
            else:
                rows = [(self.namespace, key, group, now) for key, group in zip(keys, group_ids, strict=True)]
                db.executemany(_SET_GROUP, rows)

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Whether each document is there."""
        query = "SELECT 1 FROM records WHERE namespace = ? AND key = ?"
        with self._file.reading() as db:
            return [db.execute(query, (self.namespace, key)).fetchone() is not None for key in keys]

    def list_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """The documents that fit everything that is given, oldest first.

        Args:
            before: Updated earlier than this.
            after: Updated later than this.
            group_ids: Of one of these sources; an empty list fits nothing.
            limit: At most so many.
        """
        query, values = "SELECT key FROM records WHERE namespace = ?", [self.namespace]
        bounds = [*(["updated_at < ?"] * (before is not None)), *(["updated_at > ?"] * (after is not None))]
        numbers = [bound for bound in (before, after) if bound is not None]
        query = " AND ".join([query, *bounds])
        with self._file.reading() as db:
            if group_ids is not None:
                db.execute("CREATE TEMP TABLE asked (group_id TEXT PRIMARY KEY)")  # there may be many
                db.executemany("INSERT OR IGNORE INTO asked VALUES (?)", [(group,) for group in group_ids])
                query += " AND group_id IN (SELECT group_id FROM asked)"
            query += " ORDER BY updated_at, key LIMIT ?"
            rows = db.execute(query, [*values, *numbers, -1 if limit is None else limit])
            return [key for (key,) in rows]

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Forget documents; those that are not there are no error."""
        query = "DELETE FROM records WHERE namespace = ? AND key = ?"
        with self._file.writing() as db:
            db.executemany(query, [(self.namespace, key) for key in keys])

    async def acreate_schema(self) -> None:
        """As `create_schema`."""
        await run_in_executor(None, self.create_schema)

    async def aget_time(self) -> float:
        """As `get_time`."""
        return await run_in_executor(None, self.get_time)

    async def aupdate(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        """As `update`."""
        await run_in_executor(None, self.update, keys, group_ids=group_ids, time_at_least=time_at_least)

    async def aexists(self, keys: Sequence[str]) -> list[bool]:
        """As `exists`."""
        return await run_in_executor(None, self.exists, keys)

    async def alist_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """As `list_keys`."""
        return await run_in_executor(
            None, self.list_keys, before=before, after=after, group_ids=group_ids, limit=limit
        )

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        """As `delete_keys`."""
        await run_in_executor(None, self.delete_keys, keys)
