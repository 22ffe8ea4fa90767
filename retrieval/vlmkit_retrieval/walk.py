"""One root of a scan: its folders from the top down, and beside each image what may hold its caption."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vlmkit_retrieval.errors import FileError, RetrievalError
from vlmkit_retrieval.images import SUFFIXES
from vlmkit_retrieval.scanned import Scan, ScannedFile
from vlmkit_retrieval.sidecars import metadata, pair
from vlmkit_retrieval.types import Unreadable


class Walk:
    """One root: its files go into the result.

    Args:
        result: What is filled.
        root: A folder, or one file.
        outermost: The outermost synced folder around it, or itself. No link may leave it, and files of
            captions count from there on.
        suffixes: Which files, in small letters.
    """

    def __init__(self, result: Scan, root: Path, outermost: Path, suffixes: tuple[str, ...]) -> None:
        self._result, self._root, self._suffixes = result, root, suffixes
        self._base = outermost.parent if outermost.is_file() else outermost
        self._metadata: dict[Path, tuple[Path, ...]] = {}  # for the images of a folder, by folder
        self._stamps: dict[Path, str | None] = {}

    def run(self) -> None:
        """Do it."""
        self._look_up(self._root.parent)
        if self._root.is_file():
            self._check_suffix()
            return self._take(self._root.parent, _names(self._root.parent), only=self._root.name)
        for folder, names in self._folders():
            self._inherit(folder, names)
            self._take(folder, names)

    def _look_up(self, folder: Path) -> None:
        """Note the files of captions from the outermost folder down to this one."""
        if folder.is_relative_to(self._base):
            below = folder.relative_to(self._base)
            for part in (*reversed(below.parents), below):
                self._inherit(self._base / part, _names(self._base / part))

    def _inherit(self, folder: Path, names: list[str]) -> None:
        own = tuple(folder / name for name in metadata(names))
        self._metadata[folder] = self._metadata.get(folder.parent, ()) + own

    def _folders(self) -> Iterator[tuple[Path, list[str]]]:
        def note(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # a disk that is gone has other errors
                self._refuse(Path(error.filename), error.strerror or str(error))

        for folder, folders, names in os.walk(self._root, onerror=note):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                if _is_link(Path(folder, name)):
                    reason = "a link to a folder is not followed; sync its target instead"
                    self._refuse(Path(folder, name), reason)
            yield Path(folder), sorted(name for name in names if not name.startswith("."))

    def _take(self, folder: Path, names: list[str], only: str | None = None) -> None:
        """Note the files of one folder."""
        pairs = pair(names)
        beside = {name for found in pairs.values() for name in found} | set(metadata(names))
        for name in [only] if only else names:
            if name in beside:
                if only:
                    self._refuse(folder / name, "it holds captions of images and is no item of its own")
            elif name.lower().endswith(self._suffixes):
                captions = [folder / found for found in pairs.get(name, ())]
                self._add(folder / name, captions)

    def _add(self, file: Path, sidecars: list[Path]) -> None:
        status = self._status(file)
        if status is None:
            return
        captions: list[str] = []
        digest = hashlib.sha256()
        if file.name.lower().endswith(SUFFIXES):
            for path in (*self._metadata.get(file.parent, ()), *sidecars):
                stamp = self._stamp(path)
                if stamp is not None:
                    captions.append(path.as_posix())
                    digest.update(stamp.encode())
        id, beside = file.as_posix(), digest.hexdigest()[:16] if captions else ""
        self._result.files[id] = ScannedFile(id, status.st_size, status.st_mtime_ns, tuple(captions), beside)

    def _stamp(self, path: Path) -> str | None:
        """State of a file of captions; looked at once, so that it is refused once."""
        if path not in self._stamps:
            status = self._status(path)
            self._stamps[path] = status and f"{path.as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\0"
        return self._stamps[path]

    def _status(self, file: Path) -> os.stat_result | None:
        """Of a usable file; of another one nothing, and it is refused."""
        try:
            if not _is_utf8(file):
                raise FileError("its name is not valid UTF-8; rename it")
            # A link is followed only inside its root, so that no link can pull in other files.
            if file.is_symlink() and not file.resolve(strict=True).is_relative_to(self._base):
                raise FileError("a link that leaves the synced folder")
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FileError("not a regular file")  # reading a named pipe would never end
            return status
        except (FileError, OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            self._refuse(file, getattr(error, "strerror", None) or str(error))
            return None

    def _refuse(self, path: Path, reason: str) -> None:
        shown = path.as_posix().encode(errors="backslashreplace").decode()
        self._result.unreadable.append(Unreadable(shown, reason))

    def _check_suffix(self) -> None:
        if not self._root.name.lower().endswith(self._suffixes):
            raise RetrievalError(
                f"{self._root} is no file of those looked for (possible: {' '.join(self._suffixes)}); "
                "name another one or a folder"
            )


def _names(folder: Path) -> list[str]:
    """Names of a folder that are not hidden, sorted; none if it cannot be listed, which the walk says."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _is_link(path: Path) -> bool:
    """Of a disk that is gone nobody knows; listing it then says why."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def _is_utf8(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True
