"""Where the members of a tar are: found once, kept under `~/.cache/vlmkit/tar`, nothing is unpacked.

An index is of one shard, known by its path, size and time of change. A sample's members have the same key, as
in github.com/webdataset/webdataset: folder and name up to the first dot of the name.

Shapes: M members, S samples.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.formats.lazy import Stamp
from vlmkit.errors import VlmkitError
from vlmkit.weights import cache_dir

BLOCK = tarfile.BLOCKSIZE
VERSION = 1
Array = NDArray[np.int64]


@dataclass(frozen=True)
class ShardIndex:
    """Members by sample: 18 bytes a member, and the sample's key.

    Attributes:
        offset_M: First byte of a member's content.
        size_M: Bytes of it.
        kind_M: Number of its suffix.
        first_S1: First member of each sample, and the number of members at the end.
        key_S1: Where each key starts in `keys`, and its length at the end.
        keys: Keys of all samples one after the other, UTF-8.
        suffixes: Every suffix there is, with a line break between them, UTF-8.
    """

    offset_M: Array
    size_M: Array
    kind_M: NDArray[np.uint16]
    first_S1: Array
    key_S1: Array
    keys: NDArray[np.uint8]
    suffixes: NDArray[np.uint8]

    @property
    def suffix_names(self) -> list[str]:
        """The suffixes by number, without a dot in front."""
        return self.suffixes.tobytes().decode("utf-8", "surrogateescape").split("\n")

    def key(self, sample: int) -> str:
        """Folder and name of a sample's members, up to the first dot of the name."""
        start, end = self.key_S1[sample], self.key_S1[sample + 1]
        return self.keys[start:end].tobytes().decode("utf-8", "surrogateescape")


def shard_index(path: Path) -> ShardIndex:
    """The index of a shard, from the cache where the file is the one that it was made of.

    Raises:
        VlmkitError: The shard cannot be read, is damaged or cut off (names shard and member), has a member
            twice, or the cache cannot be written.
    """
    try:
        with path.open("rb") as file:
            stamp = Stamp.of(path, file)
    except OSError as error:
        raise VlmkitError(f"{path} cannot be read ({error.strerror}); check the path") from None
    facts = f"{VERSION}\n{path.absolute()}\n{stamp.size}\n{stamp.mtime_ns}"
    cached = cache_dir() / "tar" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.npz"
    known = _load(cached)
    if known is None:
        known = _build(path, stamp.size)
        _save(cached, known)
    return known


def _build(path: Path, size: int) -> ShardIndex:
    """Group a shard's members by key, wherever in the shard they are, in the order of the first ones."""
    members: dict[str, list[tuple[int, int, int]]] = {}
    kinds: dict[str, int] = {}
    for name, offset, length in _members(path, size):
        folder, slash, base = name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot:  # as webdataset: a name without a key or a suffix is of no sample
            continue
        own = members.setdefault(folder + slash + stem, [])
        kind = kinds.setdefault(suffix.lower(), len(kinds))
        if any(other == kind for _, _, other in own):
            raise VlmkitError(f"{path} has the member {name!r} twice; write the shard again")
        own.append((offset, length, kind))
    table = np.array([m for own in members.values() for m in own], np.int64).reshape(-1, 3)
    keys = [key.encode("utf-8", "surrogateescape") for key in members]
    return ShardIndex(
        offset_M=table[:, 0].copy(),
        size_M=table[:, 1].copy(),
        kind_M=table[:, 2].astype(np.uint16),
        first_S1=np.array([0, *accumulate(map(len, members.values()))], np.int64),
        key_S1=np.array([0, *accumulate(map(len, keys))], np.int64),
        keys=np.frombuffer(b"".join(keys), np.uint8),
        suffixes=np.frombuffer("\n".join(kinds).encode("utf-8", "surrogateescape"), np.uint8),
    )


def _members(path: Path, size: int) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and length of each file in a tar.

    `tarfile` takes the first header that it cannot read for the end: what is there is looked at here.
    """
    end, last = 0, "the start"
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                end, last = member.offset_data, repr(member.name)
                if member.isfile():
                    end += -(-member.size // BLOCK) * BLOCK
                    if member.offset_data + member.size > size:
                        raise VlmkitError(f"{path}, member {last}: the file ends within it; {_AGAIN}")
                    if member.issparse():
                        raise VlmkitError(f"{path}, member {last} is a sparse file; write the shard without")
                    yield member.name, member.offset_data, member.size
                elif not member.isdir():
                    raise VlmkitError(f"{path}, member {last} is a link or a device; write the file itself")
    except tarfile.TarError as error:
        what = f"{error}; a plain tar is needed, not a packed one (.tar.gz)" if not end else str(error)
        raise VlmkitError(f"{path}: damaged after {last} ({what}); {_AGAIN}") from None
    with path.open("rb") as file:
        file.seek(end)
        if (block := file.read(BLOCK)) != bytes(BLOCK):
            found = "another header that cannot be read" if block else "the end of the file"
            raise VlmkitError(f"{path}: damaged or cut off after {last}: found {found}; {_AGAIN}")


_AGAIN = "download or write the shard again"


def _load(cached: Path) -> ShardIndex | None:
    """The stored index; None where there is none that can be read, which costs making it again."""
    try:
        with np.load(cached, allow_pickle=False) as stored:
            return ShardIndex(**{field.name: stored[field.name] for field in fields(ShardIndex)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(cached: Path, index: ShardIndex) -> None:
    part = cached.with_suffix(f".{os.getpid()}.part")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **{field.name: getattr(index, field.name) for field in fields(ShardIndex)})
        part.replace(cached)
    except OSError as error:
        raise VlmkitError(
            f"the index of a shard cannot be written to {cached.parent} ({error.strerror}); "
            "set VLMKIT_CACHE to a folder that can be written"
        ) from None
