"""The contracts of the retrieval room: no torch, no Qdrant, readable in two minutes.

A vision encoder is an `Embedder` by shape and a vision-language model an `Answerer` by shape: neither imports
this package, and this package imports neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmkit_retrieval.where import Where

Vectors = NDArray[np.float32]
# "tenant" is a keyword that separates tenants: a server keeps the items of each together.
PayloadKind = Literal["keyword", "integer", "float", "text", "tenant"]


class VectorEncoder(Protocol):
    """What an index asks of everything that makes vectors, whatever it makes them of.

    Attributes:
        name: Short name, used as the name of the vector in the engine (`vit`, `clip`).
        fingerprint: Hash of everything that changes the vectors; an index refuses any other.
        embed_dim: Width of the vectors.
    """

    @property
    def name(self) -> str:
        """Short name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything that changes the vectors."""
        ...

    @property
    def embed_dim(self) -> int:
        """Width of the vectors."""
        ...


@runtime_checkable
class Embedder(VectorEncoder, Protocol):
    """What fills an index with images and turns a query into a vector."""

    def embed_images(self, images: Sequence[Image.Image]) -> Vectors:
        """Unit-length float32 vectors of shape (len(images), embed_dim)."""
        ...

    def embed_text(self, texts: Sequence[str]) -> Vectors:
        """Unit-length float32 vectors of shape (len(texts), embed_dim); ValueError without a text tower."""
        ...


@runtime_checkable
class Answerer(Protocol):
    """What answers a question about single images."""

    def ask_each(self, images: Sequence[Image.Image], question: str) -> list[str]:
        """The same question about each image on its own: one answer an image, in order."""
        ...


@dataclass(frozen=True)
class Dense:
    """A space of one vector an item, compared by cosine.

    Attributes:
        width: Numbers of a vector.
        half: Stored as float16: half the memory; near neighbours may become ties.
    """

    width: int
    half: bool = False


@dataclass(frozen=True)
class Multi:
    """A space of several vectors an item (patches), compared by MaxSim over cosines.

    Attributes:
        width: Numbers of each vector.
        half: Stored as float16.
    """

    width: int
    half: bool = True


@dataclass(frozen=True)
class Sparse:
    """A space of weighted terms; a term's weight is multiplied by its inverse document frequency (BM25)."""


Space = Dense | Multi | Sparse


def same_space(one: Space, other: Space) -> bool:
    """Whether the same vectors fit; the precision may differ."""
    return type(one) is type(other) and getattr(one, "width", 0) == getattr(other, "width", 0)


@dataclass(frozen=True)
class Terms:
    """A sparse vector.

    Attributes:
        indices: Numbers of the terms, each once.
        values: The weight of each; same length.
    """

    indices: Sequence[int]
    values: Sequence[float]


# Of a dense space (D,), of a multi space (N, D), of a sparse one `Terms`.
Vector = Vectors | Terms


@dataclass(frozen=True)
class Point:
    """One stored item: `vectors` by the name of their space, `payload` of JSON values.

    Attributes:
        id: The user's identifier (any string); engines map it to what they can store and give it back.
    """

    id: str
    vectors: Mapping[str, Vector]
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """One found item, best first in a list of hits.

    Attributes:
        id: The item's identifier.
        score: Cosine similarity to the query in [-1, 1]; of a multi space the sum over the query's vectors of
            each one's best cosine, of a sparse one the sum of products.
        payload: What was stored with it.
    """

    id: str
    score: float
    payload: Mapping[str, Any]


class Engine(Protocol):
    """A vector store: the same promises for every engine, held by one conformance suite.

    Attributes:
        approximate: Whether a search with `exact=False` may miss neighbours: an approximate index exists.
    """

    @property
    def approximate(self) -> bool:
        """Whether a search with `exact=False` may miss neighbours."""
        ...

    def ensure(self, spaces: Mapping[str, Space]) -> None:
        """Make sure that vectors of these spaces can be stored; a known name keeps its precision.

        Raises:
            RetrievalError: A known name has another kind or width.
        """
        ...

    def spaces(self) -> Mapping[str, Space]:
        """What can be stored."""
        ...

    def drop_space(self, name: str) -> None:
        """Forget a space with the vectors in it; items stay."""
        ...

    def index_payload(self, key: str, kind: PayloadKind) -> None:
        """Make filters on a payload key fast; done twice, nothing happens. Needs a space.

        Values under the key should be of that kind: an index of integers may find 1.0 where 1 is asked for.
        """
        ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Insert or replace. NaN, Inf, zero vectors, wrong widths and too large ones refuse the whole call.

        A large call is written in pieces: each engine says how large they are, and what survives a kill.
        """
        ...

    def update_vectors(self, vectors: Mapping[str, Mapping[str, Vector]]) -> None:
        """Add or replace vectors (by id, by name) of items that exist; other vectors and payloads stay."""
        ...

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        """Add or replace keys in the payloads (by id) of items that exist."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove; unknown ids are no error."""
        ...

    def retrieve(self, ids: Sequence[str], with_vectors: bool = False) -> dict[str, Point]:
        """Those ids that exist, in order of `ids`; without `with_vectors` their `vectors` are empty."""
        ...

    def ids(self, where: Where | None = None) -> list[str]:
        """Every id that a filter lets through, sorted."""
        ...

    def scroll(self, where: Where | None = None) -> Iterator[Point]:
        """Every such point with vectors and payload, in order of id."""
        ...

    def search(
        self,
        name: str,
        query: Vector,
        k: int,
        where: Where | None = None,
        *,
        exact: bool = True,
        corpus: Where | None = None,
    ) -> list[Hit]:
        """The `k` best in a space, best first, equal scores in order of id.

        Args:
            name: The space.
            query: A vector of it; several (N, D) in a multi space.
            k: At most so many.
            where: Only items that it lets through.
            exact: Compare with every item. Otherwise by the approximate index, if there is one.
            corpus: In a sparse space, count how rare a term is among these items only; None counts in all.
        """
        ...

    def count(self, where: Where | None = None) -> int:
        """Number of points that a filter lets through."""
        ...

    def close(self) -> None:
        """Flush and let go of files and locks; closing twice is no error."""
        ...


@dataclass(frozen=True)
class Unreadable:
    """A file, or a part of it, that a sync could not use or give a vector, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class SyncReport:
    """What one sync did; `str()` says it in one line.

    Attributes:
        added: Items that were not there.
        changed: Items whose file content changed, or that had no vector of this encoder yet.
        removed: Items whose file is gone, or gives them no more.
        unchanged: Items left alone.
        embedded: Images and texts that went through an encoder (others came from the feature store); a text
            for BM25 is not counted.
        unreadable: Files, or parts of them, that could not be used, and those of which an encoder made
            nothing that can be stored. Older items of a file that cannot be read stay in the index.
        texts: How many of these are texts.
        embedded_by: What went through each encoder, by its name; those that did not run are left out.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    embedded: int
    unreadable: tuple[Unreadable, ...] = ()
    texts: int = 0
    embedded_by: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        texts = f", {self.texts} texts" if self.texts else ""
        return (
            f"{self.added} added, {self.changed} changed, {self.removed} removed, "
            f"{self.unchanged} unchanged, {len(self.unreadable)} unreadable; "
            f"{self.embedded - self.texts} images encoded{texts}"
        )


@dataclass(frozen=True)
class Citation:
    """An item that was offered as evidence, and what the model said of it.

    Attributes:
        number: 1-based position among the evidence, as shown to the user.
        hit: The item with its score.
        answer: The model's answer about this item alone.
        supports: Whether that answer is the one that was given in the end.
    """

    number: int
    hit: Hit
    answer: str
    supports: bool


@dataclass(frozen=True)
class Answer:
    """An answer from an index with its evidence.

    Attributes:
        text: The aggregated answer.
        citations: Every item asked about, best score first; those that support the answer are marked.
        rule: The rule by which `text` came from the single answers, in words.
    """

    text: str
    citations: tuple[Citation, ...]
    rule: str
