"""Where a shard lies, and how another one takes its place: a kill at any moment leaves one of them, whole.

SHARD                  the shard
SHARD.vlmkit-replaced  the old one, while the new one takes its place
SHARD.vlmkit-new-*/    where a new one is built, or made from nothing

A directory cannot be replaced by one rename. So the old one is moved aside, the new one, which is complete,
is moved in, and the old one is removed when the new one has been opened. Whoever opens next sees which of the
three was last: without a SHARD the old one comes back; with one that opens, what lies beside it is litter;
with one that does not, the old one comes back, too. What is aside is always whole: it is removed under
another name. All of it happens under the shard's lock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def recover(shard: Path) -> None:
    """Undo a swap that was killed half way. Nothing is removed before the shard was opened: see `clear`."""
    if has_old(shard) and not shard.exists():
        _replaced(shard).rename(shard)


def has_old(shard: Path) -> bool:
    """Whether an old one is aside: the new one that took its place was never opened."""
    return _replaced(shard).exists()


def bring_back(shard: Path) -> None:
    """The old one again, of a swap that somebody else did; the new one stays beside it until `clear`."""
    move_back(work_folder(shard) / "shard", shard)


def clear(shard: Path) -> None:
    """The shard is open, so remove everything else that a killed process left."""
    remove_old(shard)
    for work in shard.parent.glob(f"{_escaped(shard.name)}.vlmkit-new-*"):
        shutil.rmtree(work, ignore_errors=True)


def work_folder(shard: Path) -> Path:
    """A new folder on the shard's own disk; its name is new each time, so that nobody else writes there."""
    return Path(tempfile.mkdtemp(prefix=f"{shard.name}.vlmkit-new-", dir=shard.parent))


def move_in(new: Path, shard: Path) -> None:
    """Put a complete shard into the place of a closed one; the old one stays aside until `remove_old`."""
    remove_old(shard)
    shard.rename(_replaced(shard))
    new.rename(shard)
    _sync_folder(shard.parent)


def move_back(new: Path, shard: Path) -> None:
    """The old one again: the new one could not be opened."""
    shard.rename(new)
    _replaced(shard).rename(shard)


def remove_old(shard: Path) -> None:
    """The new one is open. Renamed first: a kill in between leaves nothing that looks like an old one."""
    if has_old(shard):
        work = work_folder(shard)
        _replaced(shard).rename(work / "shard")
        shutil.rmtree(work, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Have all files below a folder on the disk, not in the system's memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    if os.name != "nt":  # there a folder cannot be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _replaced(shard: Path) -> Path:
    return shard.with_name(shard.name + ".vlmkit-replaced")


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
