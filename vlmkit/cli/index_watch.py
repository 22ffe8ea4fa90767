"""Sync again whenever a folder changed. It looks at names, sizes and times; the index is free in between."""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vlmkit_retrieval.errors import RetrievalError


def watch(
    index: str, paths: Sequence[str], kinds: Sequence[str] | None, seconds: float, sync: Callable[[], int]
) -> int:
    """Sync at once, and after every change, until Ctrl-C or SIGTERM.

    Later syncs that are refused (somebody searches the index right now, a disk is not mounted) are told once,
    and tried again.

    Args:
        index: Its directory.
        paths: What is synced.
        kinds: Of files; None for those that the index knows.
        seconds: Between two looks.
        sync: Does it; the first one's errors end the watch.

    Returns:
        0.
    """
    with _ended_by_sigterm():
        try:
            seen, told = _state(index, paths, kinds), ""
            sync()
            while True:
                time.sleep(seconds)
                try:
                    now = _state(index, paths, kinds)
                    if now == seen:
                        continue
                    sync()
                    seen, told = now, ""
                except RetrievalError as error:
                    if str(error) != told:
                        sys.stderr.write(f"vlmkit: {error}; trying again\n")
                    told = str(error)
        except KeyboardInterrupt:
            sys.stderr.write("stopped watching\n")
    return 0


def _state(index: str, paths: Sequence[str], kinds: Sequence[str] | None) -> str:
    """A hash of what lies there; taken before a sync, so that a change during it is seen after it."""
    from vlmkit_retrieval.manifest import MANIFEST, Manifest
    from vlmkit_retrieval.scan import scan
    from vlmkit_retrieval.sources import suffixes_of

    known = Manifest.load(Path(index)) if (Path(index) / MANIFEST).exists() else Manifest()
    found = scan(paths, suffixes_of(kinds or known.kinds or ["images"]), known.roots)
    digest = hashlib.sha256()
    for id, file in sorted(found.files.items()):
        digest.update(f"{id}\0{file.state}\0".encode())
    for bad in found.unreadable:
        digest.update(f"{bad}\0".encode())
    return digest.hexdigest()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does: the index is closed before the process ends."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
