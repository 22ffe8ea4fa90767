"""What a scan finds: files by name and state, and the folders they belong to.

A file's id is its absolute path with links in the root's own path resolved, so that `photos`, `./photos/` and
`photos/2024` give a file the same id.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.types import Unreadable


@dataclass(frozen=True)
class FileState:
    """What tells without reading whether a file is still the one that was read.

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last change, nanoseconds since 1970.
        beside: Hash over path, size and time of the files that may hold its caption; empty without any. Where
            only this differs, the file need not be read again, its caption must.
    """

    size: int
    mtime_ns: int
    beside: str = ""

    def payload(self) -> dict[str, Any]:
        """What an item stores of it."""
        return asdict(self)

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> FileState:
        """What an item has stored; of an index written before captions, `beside` is empty."""
        return cls(payload["size"], payload["mtime_ns"], payload.get("beside", ""))


@dataclass(frozen=True)
class ScannedFile:
    """A file by name, not yet read.

    Attributes:
        id: Absolute path with forward slashes; the file's identity.
        size: Bytes.
        mtime_ns: Time of the last change, nanoseconds since 1970.
        captions: Of an image, the paths of the files that may hold its caption.
        beside: See `FileState`.
    """

    id: str
    size: int
    mtime_ns: int
    captions: tuple[str, ...] = ()
    beside: str = ""

    @property
    def state(self) -> FileState:
        """What an item of it stores to be recognised."""
        return FileState(self.size, self.mtime_ns, self.beside)


@dataclass
class Scan:
    """What was found under all roots.

    Attributes:
        roots: The roots as ids.
        files: By id.
        unreadable: Links that leave their root, folders that cannot be listed, names that are not UTF-8.
    """

    roots: list[str] = field(default_factory=list)
    files: dict[str, ScannedFile] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)

    def covers(self, path: str) -> bool:
        """Whether a file belongs to a root, and nothing under it was unreadable on the way to the file."""
        return any(is_under(path, root) for root in self.roots) and not any(
            is_under(path, blocked.path) for blocked in self.unreadable
        )


def is_under(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies below it.

    Of an item, ask with its payload's `path`: the id of a page (`m.pdf#page=3`) is not under `m.pdf`.
    """
    return path == root or path.startswith(root.rstrip("/") + "/")


def root_id(path: str | os.PathLike[str]) -> str:
    """The id of a root, the same for every spelling of its path.

    Raises:
        RetrievalError: Its name is not UTF-8, so that no manifest could keep it.
    """
    with suppress(RuntimeError):  # a folder may be named `~nobody`
        path = Path(path).expanduser()
    root = Path(path).resolve().as_posix()
    shown = root.encode(errors="backslashreplace").decode()
    if shown != root:
        raise RetrievalError(f"{shown}: the name is not valid UTF-8; rename it")
    return root
