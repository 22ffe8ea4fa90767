"""One run of a sync, from the scan to the report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.sources import Reader, Rules
from vlmkit_retrieval.sync.plan import Plan
from vlmkit_retrieval.sync.slots import Slot
from vlmkit_retrieval.sync.stored import Stored
from vlmkit_retrieval.sync.units import ITEMS, blocks, portions
from vlmkit_retrieval.sync.work import Work
from vlmkit_retrieval.sync.write import Writer
from vlmkit_retrieval.types import SyncReport

if TYPE_CHECKING:
    from vlmkit_retrieval.index import Index

Progress = Callable[[int, int], None]
Encoded = Callable[[str, int], None]


@dataclass(frozen=True)
class SyncOptions:
    """What can be chosen about a sync.

    Attributes:
        kinds: Of files (`images`, `text`, `pdf`); None for those that were synced before, or images.
        rules: How files become items.
        allow_empty: Let a folder that is empty or gone remove its items.
        batch: Contents that go through an encoder together. With 1 a vector is the content's and nothing
            else's; with more, a GPU has more to do, and the last bits may depend on the company.

    Raises:
        RetrievalUsageError: A batch below 1.
    """

    kinds: Sequence[str] | None = None
    rules: Rules = field(default_factory=Rules)
    allow_empty: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise RetrievalUsageError(f"batch is {self.batch}; at least 1 is needed")


class Sync:
    """Makes an index hold what folders hold.

    Args:
        index: An open index.
        paths: Folders and files.
        options: Everything else.

    Raises:
        RetrievalError: A root is missing, has no files, or would lose all its items; nothing was changed.
    """

    def __init__(self, index: Index, paths: Sequence[str | os.PathLike[str]], options: SyncOptions) -> None:
        self._index, self._options = index, options
        manifest = index.manifest
        self._kinds = list(options.kinds or manifest.kinds or ["images"])
        self._stored = Stored(index.engine, manifest.encoders)
        self._plan = Plan(self._stored, paths, self._kinds, manifest.roots, options.allow_empty)
        self._embedded: Counter[str] = Counter()

    def run(
        self,
        encoders: Mapping[str, Any],
        progress: Progress | None = None,
        encoded: Encoded | None = None,
    ) -> SyncReport:
        """Do it.

        Args:
            encoders: By their names in the index; those that are not here have their known vectors used.
            progress: Called with (files done, files in all) after each block of files.
            encoded: Called with (an encoder's name, how many contents just went through it).
        """
        index, plan = self._index, self._plan
        self._check_kinds()
        self._remember()
        slots = [
            Slot(name, entry, index.features, encoders.get(name))
            for name, entry in index.manifest.encoders.items()
        ]
        with Reader(plan.scan.files, self._kinds, self._options.rules, plan.scan.covers) as reader:
            reader.check(plan.files)
            work = Work(self._stored, index.engine, reader, slots, self._options.batch, self._count(encoded))
            writer = Writer(index.engine, slots)
            done = 0
            for block in blocks(plan.files):
                for portion in portions(block):
                    tasks = work.tasks(portion)
                    for start in range(0, len(tasks), ITEMS):
                        work.fill(tasks[start : start + ITEMS])
                        writer.write(tasks[start : start + ITEMS])
                done += len(block)
                if progress is not None:
                    progress(done, len(plan.files))
            index.engine.delete([*work.stale, *plan.gone])
            return self._report(work, writer, reader)

    def _check_kinds(self) -> None:
        """Refuse what nobody could find again."""
        of_text = [n for n, entry in self._index.manifest.encoders.items() if entry.kind in ("text", "terms")]
        if "text" in self._kinds and not of_text:
            raise RetrievalUsageError(
                "files of kind 'text' need an encoder of texts: add BM25 or a text encoder (--bm25, "
                "--text-encoder), or leave the kind out"
            )

    def _count(self, encoded: Encoded | None) -> Encoded:
        def count(name: str, number: int) -> None:
            self._embedded[name] += number
            if encoded is not None:
                encoded(name, number)

        return count

    def _remember(self) -> None:
        manifest = self._index.manifest
        roots = sorted({*manifest.roots, *self._plan.scan.roots})
        kinds = list(dict.fromkeys([*manifest.kinds, *self._kinds]))
        if (roots, kinds) != (manifest.roots, manifest.kinds):
            manifest.roots, manifest.kinds = roots, kinds
            manifest.save(self._index.path)

    def _report(self, work: Work, writer: Writer, reader: Reader) -> SyncReport:
        kinds = {name: entry.kind for name, entry in self._index.manifest.encoders.items()}
        count: Counter[str] = Counter()
        for name, number in self._embedded.items():
            count[kinds[name]] += number
        refused = dict.fromkeys([*self._plan.scan.unreadable, *reader.refused])
        return SyncReport(
            writer.added,
            writer.changed,
            len(work.stale) + len(self._plan.gone),
            work.unchanged + writer.unchanged,
            count["image"] + count["patches"] + count["text"],
            tuple(refused),
            count["text"],
            dict(self._embedded),
        )
