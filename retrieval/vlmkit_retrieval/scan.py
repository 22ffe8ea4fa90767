"""Which image files lie under the synced paths. Nothing is opened here: names and `stat` only.

An item's id is the absolute path of its file with links in the root's own path resolved, so that `photos`,
`./photos/` and `photos/2024` give a file the same id.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.images import SUFFIXES
from vlmkit_retrieval.types import Unreadable


@dataclass(frozen=True)
class ScannedFile:
    """An image file by name, not yet read.

    Attributes:
        id: Absolute path with forward slashes; the item's identity.
        size: Bytes.
        mtime_ns: Time of the last change, nanoseconds since 1970.
    """

    id: str
    size: int
    mtime_ns: int


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

    def covers(self, id: str) -> bool:
        """Whether an item belongs to a root, and nothing under it was unreadable on the way to the item."""
        return any(is_under(id, root) for root in self.roots) and not any(
            is_under(id, blocked.path) for blocked in self.unreadable
        )


def is_under(id: str, root: str) -> bool:
    """Whether `id` is `root` or lies below it."""
    return id == root or id.startswith(root.rstrip("/") + "/")


def root_id(path: str | os.PathLike[str]) -> str:
    """The id of a root, the same for every spelling of its path."""
    return Path(path).expanduser().resolve().as_posix()


def scan(paths: Iterable[str | os.PathLike[str]]) -> Scan:
    """Find the image files under folders, and files named directly; hidden names are skipped.

    A root that does not exist counts as empty; whether that is an error is the caller's to say.

    Raises:
        RetrievalError: A file that is named directly has no image suffix.
    """
    result = Scan()
    for path in paths:
        root = Path(root_id(path))
        result.roots.append(root.as_posix())
        if root.is_file():
            _check_suffix(root)
            _add(result, root, root)
        else:
            for file in _walk(result, root):
                _add(result, file, root)
    return result


def _walk(result: Scan, root: Path) -> Iterator[Path]:
    def note(error: OSError) -> None:
        if Path(error.filename).exists():
            _refuse(result, Path(error.filename), error.strerror or str(error))

    for folder, folders, names in os.walk(root, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                _refuse(
                    result, Path(folder, name), "a link to a folder is not followed; sync its target instead"
                )
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(folder, name)


def _add(result: Scan, file: Path, root: Path) -> None:
    """Note one file; a link is followed only inside its root, so that no link can pull in other files."""
    if not _is_utf8(file):
        return _refuse(result, file, "its name is not valid UTF-8; rename it")
    try:
        if file.is_symlink() and not file.resolve(strict=True).is_relative_to(root):
            return _refuse(result, file, "a link that leaves the synced folder")
        status = file.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        return _refuse(result, file, getattr(error, "strerror", None) or str(error))
    if not stat.S_ISREG(status.st_mode):
        return _refuse(result, file, "not a regular file")  # reading a named pipe would never end
    id = file.as_posix()
    result.files[id] = ScannedFile(id, status.st_size, status.st_mtime_ns)


def _refuse(result: Scan, path: Path, reason: str) -> None:
    shown = path.as_posix().encode(errors="backslashreplace").decode()
    result.unreadable.append(Unreadable(shown, reason))


def _is_utf8(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_suffix(file: Path) -> None:
    if file.suffix.lower() not in SUFFIXES:
        raise RetrievalError(
            f"{file} has no image suffix (possible: {' '.join(SUFFIXES)}); name an image or a folder"
        )
