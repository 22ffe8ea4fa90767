"""An index: a directory that knows its encoders, its folders and its vectors, and refuses to mix spaces.

INDEX/vlmkit-index.json   engine, encoders with fingerprints, synced roots
INDEX/engine/             the embedded engine's shard (or a server, by URL)
INDEX/features.sqlite     vectors by image content: a cache
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from vlmkit_retrieval.engines import engine_kind, located, open_engine
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.feature_store import FeatureStore
from vlmkit_retrieval.lock import FileLock
from vlmkit_retrieval.manifest import MANIFEST, EncoderEntry, Manifest
from vlmkit_retrieval.search.asked import AskedSpace, image_space
from vlmkit_retrieval.search.hits import SearchHit
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.search.searcher import Searcher
from vlmkit_retrieval.sync import Progress, Sync
from vlmkit_retrieval.types import Dense, Embedder, SyncReport
from vlmkit_retrieval.where import Where


class Index:
    """An open index; one process at a time. Use it as a context manager, or `close` it.

    Made by `Index.open` or `Index.create_or_open`.

    Attributes:
        path: Its directory.
        manifest: What it knows about itself.
        engine: Where points are stored.
        features: Vectors by content.
    """

    def __init__(self, path: str | os.PathLike[str], *, disposable: bool = False) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        with ExitStack() as opened:
            lock = FileLock(self.path / ".lock", f"index {self.path}")
            opened.callback(lock.release)
            self._discard = _Discard(self.path, disposable)
            opened.push(self._discard)  # runs when the engine is closed and the lock still held
            self.manifest = Manifest.load(self.path)  # again: its last holder may just have written it
            self.engine = open_engine(located(self.manifest.engine, self.path))
            opened.callback(self.engine.close)
            self.features = FeatureStore(self.path / "features.sqlite")
            self.engine.ensure({name: Dense(entry.dim) for name, entry in self.manifest.encoders.items()})
            self._opened = opened.pop_all()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open an existing index.

        Raises:
            IndexLockedError: It is open elsewhere; the message names the process.
            RetrievalError: The directory is not an index, or of a newer version, or damaged.
        """
        return cls(path)

    @classmethod
    def create_or_open(cls, path: str | os.PathLike[str], engine: str | None = None) -> Self:
        """Open an index, or make one where nothing is.

        A `with` block that fails before anything was stored takes a directory made here away again.

        Args:
            path: Its directory.
            engine: Where a new index stores its points: None for a directory inside it,
                `http(s)://host:port/collection`, or what else `open_engine` takes.

        Raises:
            RetrievalError: As `open`, or the directory holds something else, or another engine.
        """
        directory = Path(path)
        made = False
        if not (directory / MANIFEST).exists():
            engine_kind(engine or "engine")
            _check_free(directory)
            made = _make(directory)
            Manifest(engine or "engine").save(directory)
        index = cls(directory, disposable=made)
        if engine not in (None, index.manifest.engine):
            index.close()
            raise RetrievalUsageError(
                f"index {directory} stores its points in {index.manifest.engine}, not {engine}"
            )
        return index

    def add_encoder(self, embedder: Embedder, reference: str | None = None, name: str | None = None) -> str:
        """Make room for an encoder's vectors; nothing happens if it is known already.

        Args:
            embedder: The encoder.
            reference: How to load it again, e.g. a run's directory; kept up to date when given.
            name: Its name in this index, where two encoders share `embedder.name`.

        Returns:
            The name of its vector.

        Raises:
            RetrievalError: Another encoder has this name.
        """
        fingerprint = embedder.fingerprint  # takes seconds for a large encoder
        known = self._name_of(embedder, fingerprint) if name is None else None
        name = known or name or embedder.name
        stored = self.manifest.encoders.get(name)
        if stored is None:
            text = _embeds_text(embedder)
            entry = EncoderEntry(fingerprint, embedder.embed_dim, reference or "", text)
        else:
            self._check_same(stored, fingerprint, name)
            entry = replace(stored, reference=stored.reference if reference is None else reference)
        if entry != stored:
            self.manifest.encoders[name] = entry
            self.manifest.save(self.path)
            self.engine.ensure({name: Dense(entry.dim)})
        return name

    def require_encoder(self, embedder: Embedder) -> str:
        """The name under which this very encoder fills the index.

        Raises:
            RetrievalError: The index was filled by others; the message says which, and what to do.
        """
        name = self._name_of(embedder, embedder.fingerprint)
        if name is None:
            known = "; ".join(f"{n} {_describe(e)}" for n, e in self.manifest.encoders.items()) or "none"
            raise RetrievalError(
                f"index {self.path} was not filled by encoder {embedder.name!r} (fingerprint "
                f"{embedder.fingerprint[:12]}); it has: {known}; use one of these, or sync with this one"
            )
        return name

    def encoder_references(self) -> list[str]:
        """How to load the encoders of this index again, those that embed text first."""
        entries = sorted(self.manifest.encoders.values(), key=lambda entry: not entry.text)
        return [entry.reference for entry in entries if entry.reference]

    def sync(
        self,
        paths: Sequence[str | os.PathLike[str]],
        embedder: Embedder,
        progress: Progress | None = None,
        *,
        reference: str | None = None,
        allow_empty: bool = False,
    ) -> SyncReport:
        """Make the index hold what the folders hold: files added, changed and gone.

        Unchanged files are not read; equal content is not encoded twice; a run that was killed is finished by
        the next one, with the same result.

        Args:
            paths: Folders (recursive) and image files.
            embedder: The encoder; added to the index if it has none of this name.
            progress: Called with (files done, files in all).
            reference: How to load the encoder again, for later searches.
            allow_empty: Let a folder that is empty or gone remove all its items.

        Raises:
            RetrievalError: Another encoder has this name, or a path is missing or without images.
        """
        sync = Sync(self, paths, allow_empty)
        return sync.run(embedder, self.add_encoder(embedder, reference), progress)

    def search(
        self,
        text: str | None = None,
        image: Image.Image | None = None,
        *,
        embedder: Embedder | Sequence[Embedder],
        k: int = 10,
        where: Where | Mapping[str, Any] | None = None,
        options: SearchOptions | None = None,
        also: Sequence[AskedSpace] = (),
    ) -> list[SearchHit]:
        """The `k` items nearest to a text, to an image, or to both, best first, each with its explanation.

        Every item is compared, unless the engine has an approximate index.

        Args:
            text: What to search for in words: goes to encoders with a text tower.
            image: What to search for as a picture: goes to every encoder.
            embedder: One encoder that filled the index, or several, whose lists are fused.
            k: At most so many.
            where: Only items that this filter lets through, e.g. `{"kind": "image"}` (see `where.py`).
            options: Weights, how a text and an image are composed, near-duplicates, diversity.
            also: Other spaces to ask, e.g. `term_space("bm25", Bm25Terms())`.

        Raises:
            RetrievalUsageError: Neither text nor image, an empty text, a filter or an option without meaning.
            RetrievalError: An encoder that did not fill the index, or text for one that embeds images only.
        """
        given = embedder if isinstance(embedder, Sequence) else [embedder]
        names = {self.require_encoder(one): one for one in given}
        spaces = [
            image_space(name, one, text=self.manifest.encoders[name].text) for name, one in names.items()
        ]
        if text is not None and names and not any(space.text for space in [*spaces, *also]):
            raise self._no_text(next(iter(names)))
        searcher = Searcher(self.engine, [*spaces, *also])
        return searcher.search(text, image, k=k, where=where, options=options or SearchOptions())

    def info(self) -> dict[str, Any]:
        """What the index holds, as JSON values: path, engine, items, encoders, roots."""
        encoders = {name: asdict(entry) for name, entry in self.manifest.encoders.items()}
        return {
            "path": str(self.path),
            "engine": self.manifest.engine,
            "items": self.engine.count(),
            "encoders": encoders,
            "roots": list(self.manifest.roots),
        }

    def close(self) -> None:
        """Flush and let go of the lock; closing twice is no error."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard.armed = self._discard.armed and error is not None and self._is_empty()
        self._opened.__exit__(kind, error, trace)

    def _is_empty(self) -> bool:
        try:
            return self.engine.count() == 0
        except RetrievalError:  # closed, forked, or the server has gone: who knows
            return False

    def _name_of(self, embedder: Embedder, fingerprint: str) -> str | None:
        encoders = self.manifest.encoders
        same = [name for name, entry in encoders.items() if entry.fingerprint == fingerprint]
        return embedder.name if embedder.name in same else next(iter(same), None)

    def _check_same(self, stored: EncoderEntry, fingerprint: str, name: str) -> None:
        if stored.fingerprint == fingerprint:
            return
        raise RetrievalError(
            f"index {self.path}: encoder {name!r} is {_describe(stored)}, given is one with fingerprint "
            f"{fingerprint[:12]}; use the stored one, or sync into a new index directory"
        )

    def _no_text(self, name: str) -> RetrievalError:
        others = [n for n, entry in self.manifest.encoders.items() if entry.text]
        return RetrievalError(
            f"encoder {name!r} embeds images only; search by an image, or use an encoder with a text "
            f"tower (in this index: {', '.join(others) or 'none'})"
        )


@dataclass
class _Discard:
    """Removes a directory after an error, while armed; knows no index, which would then outlive its `del`."""

    path: Path
    armed: bool

    def __call__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.armed:
            shutil.rmtree(self.path, ignore_errors=True)


def _embeds_text(embedder: Embedder) -> bool:
    """Ask the encoder itself: by contract it raises ValueError without a text tower."""
    try:
        embedder.embed_text(["a photo"])
    except ValueError:
        return False
    return True


def _describe(entry: EncoderEntry) -> str:
    return f"fingerprint {entry.fingerprint[:12]} from {entry.reference or 'an unknown place'}"


def _make(directory: Path) -> bool:
    """Make it; whether it was made here, and not by another process meanwhile."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


def _check_free(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.glob("[!.]*"))):
        raise RetrievalError(f"{directory} exists and is not an index; name a new or an empty directory")
