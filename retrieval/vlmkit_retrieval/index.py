"""An index: a directory that knows its encoders, its folders and its vectors, and refuses to mix spaces.

INDEX/vlmkit-index.json   engine, encoders with fingerprints, synced roots
INDEX/engine/             the embedded engine's shard (or a server, by URL)
INDEX/features.sqlite     vectors by content: a cache
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from vlmkit_retrieval.encoders import Encoder, asked_space
from vlmkit_retrieval.engines import engine_kind, located, open_engine
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.feature_store import FeatureStore
from vlmkit_retrieval.filled_by import FilledBy
from vlmkit_retrieval.json_file import clear_unfinished
from vlmkit_retrieval.lock import FileLock
from vlmkit_retrieval.manifest import MANIFEST, Manifest
from vlmkit_retrieval.place import Discard, check_free, make
from vlmkit_retrieval.search.asked import AskedSpace
from vlmkit_retrieval.search.hits import SearchHit
from vlmkit_retrieval.search.options import SearchOptions
from vlmkit_retrieval.search.searcher import Searcher
from vlmkit_retrieval.sync import Encoded, Progress, Sync, SyncOptions
from vlmkit_retrieval.types import SyncReport
from vlmkit_retrieval.where import HasVector, Where


class Index(FilledBy):
    """An open index; one process at a time. Use it as a context manager, or `close` it.

    Made by `Index.open` or `Index.create_or_open`.

    Attributes:
        path: Its directory.
        manifest: What it knows about itself.
        engine: Where points are stored.
        features: Vectors by content.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, disposable: bool = False, first: Manifest | None = None
    ) -> None:
        self.path = Path(path)
        if first is None:
            Manifest.load(self.path)  # a directory of something else gets no lock file
        with ExitStack() as opened:
            lock = FileLock(self.path / ".lock", f"index {self.path}")
            opened.callback(lock.release)
            self._discard = Discard(self.path, disposable)
            opened.push(self._discard)  # runs when the engine is closed and the lock still held
            clear_unfinished(self.path / MANIFEST)
            # Another process may have been first.
            if first is not None and not (self.path / MANIFEST).exists():
                first.save(self.path)
            self.manifest = Manifest.load(self.path)
            self.engine = open_engine(located(self.manifest.engine, self.path))
            opened.callback(self.engine.close)
            self.features = FeatureStore(self.path / "features.sqlite")
            for name in list(self.manifest.dropping):
                self._drop(name)  # a forgetting that was killed
            self.engine.ensure(self.manifest.spaces())
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
        made, first = False, None
        if not (directory / MANIFEST).exists():
            engine_kind(engine or "engine")
            check_free(directory)
            made = make(directory)
            first = Manifest(engine or "engine")
        index = cls(directory, disposable=made, first=first)
        if engine not in (None, index.manifest.engine):
            index.close()
            raise RetrievalUsageError(
                f"index {directory} stores its points in {index.manifest.engine}, not {engine}"
            )
        return index

    def sync(
        self,
        paths: Sequence[str | os.PathLike[str]],
        embedder: Encoder | Sequence[Encoder],
        progress: Progress | None = None,
        *,
        reference: str | Sequence[str | None] | None = None,
        name: str | Sequence[str | None] | None = None,
        allow_empty: bool = False,
        options: SyncOptions | None = None,
        encoded: Encoded | None = None,
    ) -> SyncReport:
        """Make the index hold what the folders hold: files added, changed and gone.

        Unchanged files are not read; equal content is not encoded twice; a run that was killed is finished by
        the next one, with the same result. An encoder that the index has and that is not given is not run;
        vectors that it made of the same content are used.

        Args:
            paths: Folders (recursive) and files.
            embedder: One encoder or several, of any kind; those that the index has not are added, and make
                vectors for what is there already.
            progress: Called with (files done, files in all).
            reference: How to load the encoder again, for later searches; of several, one each.
            name: Of the encoder in this index, where two share a name (see `add_encoder`); of several, one
                each.
            allow_empty: Let a folder that is empty or gone remove all its items.
            options: Kinds of files, rules, and more.
            encoded: Called with (an encoder's name, how many contents just went through it).

        Raises:
            RetrievalError: Another encoder has this name, or a path is missing or without such files.
        """
        given = list(embedder) if isinstance(embedder, Sequence) else [embedder]
        references, names = _one_each(reference, given), _one_each(name, given)
        options = replace(
            options or SyncOptions(), allow_empty=allow_empty or bool(options and options.allow_empty)
        )
        sync = Sync(self, paths, options)
        known = {self._enter(*one): one[0] for one in zip(given, references, names, strict=True)}
        self.engine.ensure(self.manifest.spaces())  # all at once: a space that comes later costs a copy
        return sync.run(known, progress, encoded)

    def search(
        self,
        text: str | None = None,
        image: Image.Image | None = None,
        *,
        embedder: Encoder | Sequence[Encoder],
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
            embedder: One encoder that filled the index, or several of any kind, whose lists are fused.
            k: At most so many.
            where: Only items that this filter lets through, e.g. `{"kind": "image"}` (see `where.py`).
            options: Weights, how a text and an image are composed, near-duplicates, diversity.
            also: Other spaces to ask, e.g. `term_space("bm25", Bm25Terms())`.

        Raises:
            RetrievalUsageError: Neither text nor image, an empty text, a filter or an option without meaning.
            RetrievalError: An encoder that did not fill the index, or text for one that embeds images only.
        """
        given = embedder if isinstance(embedder, Sequence) else [embedder]
        spaces = [*self.asked_spaces(given), *also]
        if text is not None and spaces and not any(space.text for space in spaces):
            raise self._no_text(spaces[0].name)
        searcher = Searcher(self.engine, spaces)
        return searcher.search(text, image, k=k, where=where, options=options or SearchOptions())

    def asked_spaces(self, encoders: Sequence[Encoder]) -> list[AskedSpace]:
        """How a search asks the spaces that these encoders filled.

        Raises:
            RetrievalError: One of them did not fill this index.
        """
        names = {self.require_encoder(one): one for one in encoders}
        return [asked_space(name, one, self.manifest.encoders[name].text) for name, one in names.items()]

    def info(self) -> dict[str, Any]:
        """What the index holds, as JSON values: path, engine, items, kinds, encoders (with items), roots."""
        encoders = {
            name: {**asdict(entry), "items": self.engine.count(HasVector(name))}
            for name, entry in self.manifest.encoders.items()
        }
        return {
            "path": str(self.path),
            "engine": self.manifest.engine,
            "items": self.engine.count(),
            "kinds": list(self.manifest.kinds),
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

    def _no_text(self, name: str) -> RetrievalError:
        others = [n for n, entry in self.manifest.encoders.items() if entry.text]
        return RetrievalError(
            f"encoder {name!r} embeds images only; search by an image, or use an encoder with a text "
            f"tower (in this index: {', '.join(others) or 'none'})"
        )


def _one_each(stated: str | Sequence[str | None] | None, given: Sequence[Encoder]) -> list[str | None]:
    return [stated] * len(given) if isinstance(stated, str | None) else list(stated)
