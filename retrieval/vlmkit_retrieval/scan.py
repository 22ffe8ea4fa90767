"""Which files lie under the synced paths. Nothing is opened here: names and `stat` only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vlmkit_retrieval.images import SUFFIXES
from vlmkit_retrieval.scanned import FileState, Scan, ScannedFile, is_under, root_id
from vlmkit_retrieval.walk import Walk

__all__ = ["FileState", "Scan", "ScannedFile", "is_under", "root_id", "scan"]


def scan(
    paths: Iterable[str | os.PathLike[str]],
    suffixes: tuple[str, ...] = SUFFIXES,
    known: Iterable[str | os.PathLike[str]] = (),
) -> Scan:
    """Find files under folders, and files named directly; hidden names are skipped.

    A root that does not exist counts as empty; whether that is an error is the caller's to say. What holds an
    image's caption is no file of its own.

    Args:
        paths: Folders and files.
        suffixes: Which files, in small letters; names in large ones fit, too.
        known: Folders that were synced before. A folder's one file of captions is for all folders below, so
            one in such a folder counts also where only a folder below it is scanned.

    Raises:
        RetrievalError: A file that is named directly has another suffix.
    """
    result = Scan()
    result.roots = [root_id(path) for path in paths]
    folders = {*result.roots, *map(root_id, known)}
    for root in result.roots:
        outermost = min((f for f in folders if is_under(root, f)), key=len)
        Walk(result, Path(root), Path(outermost), suffixes).run()
    return result
