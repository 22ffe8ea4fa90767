"""What a sync goes through and what it may remove: an unmounted disk is not a mass delete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.scan import Scan, ScannedFile, is_under, scan
from vlmkit_retrieval.sources import suffixes_of
from vlmkit_retrieval.sync.stored import Record, Stored
from vlmkit_retrieval.types import Unreadable


class Plan:
    """The files of a sync, and which stored items have lost theirs.

    Args:
        stored: What the index holds.
        paths: Folders and files.
        kinds: Of files; files of other kinds are not looked at, and their items stay.
        known: Roots that were synced before.
        allow_empty: Let a root that is empty, missing or exchanged as a whole remove its items.

    Attributes:
        scan: What was found.
        files: In order of their ids.
        gone: Items whose file is gone, in order of their ids.

    Raises:
        RetrievalError: A root is missing, has no such files, or would lose everything.
    """

    def __init__(
        self,
        stored: Stored,
        paths: Sequence[str | os.PathLike[str]],
        kinds: Sequence[str],
        known: Sequence[str],
        allow_empty: bool,
    ) -> None:
        self._stored, self._kinds = stored, tuple(kinds)
        self._suffixes = suffixes_of(kinds)
        self.scan: Scan = scan(paths, self._suffixes, known)
        self.files: list[ScannedFile] = sorted(self.scan.files.values(), key=lambda file: file.id)
        gone = [record for record in stored if self._is_gone(record)]
        for root in self.scan.roots:
            self._check_root(root, gone, allow_empty)
        if not allow_empty:
            gone = self._without_emptied(gone)
        self.gone = sorted(record.id for record in gone)

    def _is_gone(self, record: Record) -> bool:
        of_kind = PurePosixPath(record.path).suffix.lower() in self._suffixes
        return of_kind and record.path not in self.scan.files and self.scan.covers(record.path)

    def _without_emptied(self, gone: Sequence[Record]) -> list[Record]:
        """Those that may go: a folder that is left with nothing may be a disk that is not mounted."""
        left: dict[str, list[Record]] = {}
        for record in gone:
            left.setdefault(_left_of(record.path), []).append(record)
        stay: set[str] = set()
        for folder, lost in sorted(left.items()):
            if folder in self.scan.roots or not _is_empty(folder):
                continue
            kept = [record for record in lost if not self._moved([record])]
            if not kept:
                continue
            stay.update(record.id for record in kept)
            reason = (
                f"is empty, and the index holds {len(kept)} items of it, which stay: is a disk not mounted? "
                "To remove them, sync with --allow-empty (allow_empty=True), or remove the folder"
            )
            self.scan.unreadable.append(Unreadable(folder, reason))
        return [record for record in gone if record.id not in stay]

    def _check_root(self, root: str, gone: Sequence[Record], allow_empty: bool) -> None:
        files = [file for file in self.scan.files.values() if is_under(file.id, root)]
        lost = [record for record in gone if is_under(record.path, root)]
        if not files:
            self._check_empty(root, lost, allow_empty)
        elif lost and not allow_empty and not self._keeps(root) and not self._moved(lost):
            raise RetrievalError(
                f"none of the {len(lost)} items that the index holds of {root} is there any more: is a disk "
                f"below it not mounted? ({len(files)} other files are there.) To remove them, sync with "
                "--allow-empty (allow_empty=True)"
            )

    def _check_empty(self, root: str, lost: Sequence[Record], allow_empty: bool) -> None:
        what = "images" if self._kinds == ("images",) else "files to index"
        found = f"has no {what}" if Path(root).exists() else "does not exist"
        if lost and not allow_empty:
            raise RetrievalError(
                f"{root} {found}, and the index holds {len(lost)} items of it: is a disk not mounted? "
                "To remove them all, sync with --allow-empty (allow_empty=True)"
            )
        if not lost and not any(is_under(bad.path, root) for bad in self.scan.unreadable):
            folder = "a folder of images" if self._kinds == ("images",) else "a folder that has some"
            raise RetrievalError(f"{root} {found} (looked for {' '.join(self._suffixes)}); name {folder}")

    def _keeps(self, root: str) -> bool:
        """Whether a file of the root that the index knows is still there."""
        return any(path in self.scan.files and is_under(path, root) for path in self._stored.by_path)

    def _moved(self, lost: Sequence[Record]) -> bool:
        """Whether a lost file has another name now: renamed files keep size and time."""
        return any((record.state.size, record.state.mtime_ns) in self._new for record in lost)

    @cached_property
    def _new(self) -> set[tuple[int, int]]:
        """Size and time of the files that the index does not know."""
        return {(f.size, f.mtime_ns) for f in self.files if f.id not in self._stored.by_path}


def _left_of(path: str) -> str:
    """The nearest folder of a path that is still there."""
    return next(str(folder) for folder in Path(path).parents if folder.is_dir())


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:  # it cannot be read, so who knows what is in it
        return True
