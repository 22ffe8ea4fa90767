"""Make an index hold what folders hold. Any prefix of the work may survive a kill; the next run finishes it.

Files are taken in fixed chunks of the sorted list of all files, also when most are unchanged: a chunk goes
through the encoder in the same company in an interrupted and an uninterrupted run, so its vectors are the
same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.images import SUFFIXES, ImageError, decode_image, read_file, sha256
from vlmkit_retrieval.scan import ScannedFile, is_under, scan
from vlmkit_retrieval.types import Embedder, Point, SyncReport, Unreadable, Vector, Vectors

if TYPE_CHECKING:
    from vlmkit_retrieval.index import Index

Progress = Callable[[int, int], None]
# 32 images of the largest allowed size are 4.8 GB as pixels; of usual photographs, 1 GB.
CHUNK = 32


@dataclass
class _Counts:
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    embedded: int = 0


@dataclass
class _Work:
    """What one chunk still needs: content hash by file, and images to encode by content hash."""

    hashes: dict[ScannedFile, str] = field(default_factory=dict)
    images: dict[str, Image.Image] = field(default_factory=dict)


class Sync:
    """One run of a sync.

    Args:
        index: An open index.
        paths: Folders and files.
        allow_empty: Let an empty or missing root remove its items.

    Raises:
        RetrievalError: A root is missing, or has no images; nothing was changed.
    """

    def __init__(self, index: Index, paths: Sequence[str | os.PathLike[str]], allow_empty: bool) -> None:
        self._index = index
        self._scan = scan(paths)
        self._stored = set(index.engine.ids())
        self._counts = _Counts()
        self._unreadable = list(self._scan.unreadable)
        for root in self._scan.roots:
            self._check_root(root, allow_empty)

    def run(self, embedder: Embedder, name: str, progress: Progress | None = None) -> SyncReport:
        """Do it.

        Args:
            embedder: The encoder.
            name: Its name in the index.
            progress: Called with (files done, files in all) after each chunk.
        """
        self._remember_roots()
        fingerprint = self._index.manifest.encoders[name].fingerprint  # the embedder's, already computed
        files = sorted(self._scan.files.values(), key=lambda file: file.id)
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            self._sync_chunk(chunk, embedder, name, fingerprint)
            if progress is not None:
                progress(start + len(chunk), len(files))
        gone = [id for id in sorted(self._stored) if self._scan.covers(id) and id not in self._scan.files]
        self._index.engine.delete(gone)
        counts = self._counts
        return SyncReport(
            counts.added,
            counts.changed,
            len(gone),
            counts.unchanged,
            counts.embedded,
            tuple(self._unreadable),
        )

    def _check_root(self, root: str, allow_empty: bool) -> None:
        if any(is_under(id, root) for id in self._scan.files):
            return
        found = "has no images" if Path(root).exists() else "does not exist"
        items = sum(is_under(id, root) for id in self._stored)
        if items and not allow_empty:
            raise RetrievalError(
                f"{root} {found}, and the index holds {items} items of it: is a disk not mounted? "
                "To remove them all, sync with --allow-empty (allow_empty=True)"
            )
        if not items and not any(is_under(bad.path, root) for bad in self._unreadable):
            raise RetrievalError(f"{root} {found} (looked for {' '.join(SUFFIXES)}); name a folder of images")

    def _remember_roots(self) -> None:
        roots = sorted({*self._index.manifest.roots, *self._scan.roots})
        if roots != self._index.manifest.roots:
            self._index.manifest.roots = roots
            self._index.manifest.save(self._index.path)

    def _sync_chunk(
        self, chunk: Sequence[ScannedFile], embedder: Embedder, name: str, fingerprint: str
    ) -> None:
        stored = self._index.engine.retrieve([file.id for file in chunk])
        work = _Work()
        for file in chunk:
            point = stored.get(file.id)
            if point is not None and _is_current(point.payload, file, name):
                self._counts.unchanged += 1
            else:
                self._read(file, point, work, fingerprint, name)
        if work.hashes:
            self._embed(work, embedder, fingerprint)
            self._write(work, stored, name)

    def _read(self, file: ScannedFile, point: Point | None, work: _Work, fingerprint: str, name: str) -> None:
        """Hash the content; decode it only if no vector is known for it."""
        try:
            data = read_file(Path(file.id))
            sha = sha256(data)
            has_vector = point is not None and _has_vector(point.payload, sha, name)
            if (
                not has_vector
                and sha not in work.images
                and self._index.features.get(fingerprint, sha) is None
            ):
                work.images[sha] = decode_image(data)
            work.hashes[file] = sha
        except ImageError as error:
            self._unreadable.append(Unreadable(file.id, str(error)))

    def _embed(self, work: _Work, embedder: Embedder, fingerprint: str) -> None:
        if not work.images:
            return
        vectors = embedder.embed_images(list(work.images.values()))
        if vectors.shape != (len(work.images), embedder.embed_dim):
            raise RetrievalError(
                f"encoder {embedder.name!r} gave vectors of shape {vectors.shape}, expected is "
                f"({len(work.images)}, {embedder.embed_dim}); fix the encoder"
            )
        self._index.features.put_many(fingerprint, dict(zip(work.images, vectors, strict=True)))
        self._counts.embedded += len(work.images)

    def _write(self, work: _Work, stored: Mapping[str, Point], name: str) -> None:
        same = [
            f.id for f, sha in work.hashes.items() if f.id in stored and stored[f.id].payload["sha256"] == sha
        ]
        kept = self._index.engine.retrieve(same, with_vectors=True)
        points = []
        for file, sha in work.hashes.items():
            vectors: dict[str, Vector] = {
                **self._known_vectors(sha),
                **(kept[file.id].vectors if file.id in kept else {}),
            }
            points.append(Point(file.id, vectors, _payload(file, sha, vectors)))
            self._count(file, stored, kept, name)
        self._index.engine.upsert(points)

    def _known_vectors(self, sha: str) -> dict[str, Vectors]:
        """Vectors of this content for every encoder of the index: a renamed file keeps them all."""
        encoders = self._index.manifest.encoders
        found = {name: self._index.features.get(entry.fingerprint, sha) for name, entry in encoders.items()}
        return {name: np.asarray(vector) for name, vector in found.items() if vector is not None}

    def _count(
        self, file: ScannedFile, stored: Mapping[str, Point], kept: Mapping[str, Point], name: str
    ) -> None:
        if file.id not in stored:
            self._counts.added += 1
        elif file.id in kept and name in stored[file.id].payload["encoders"]:
            self._counts.unchanged += 1
        else:
            self._counts.changed += 1


def _is_current(payload: Mapping[str, Any], file: ScannedFile, name: str) -> bool:
    same = payload["size"] == file.size and payload["mtime_ns"] == file.mtime_ns
    return same and name in payload["encoders"]


def _has_vector(payload: Mapping[str, Any], sha: str, name: str) -> bool:
    return payload["sha256"] == sha and name in payload["encoders"]


def _payload(file: ScannedFile, sha: str, vectors: Mapping[str, Vector]) -> dict[str, Any]:
    return {
        "path": file.id,
        "sha256": sha,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "encoders": sorted(vectors),
    }
