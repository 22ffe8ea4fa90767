"""What each encoder of an index needs of an item, and how its vectors are made and kept.

Shapes: N patches, D numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlmkit_retrieval.encoders import EncoderKind, kind_of, pooled_name
from vlmkit_retrieval.engines.vectors import complaint
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.feature_store import FeatureStore
from vlmkit_retrieval.manifest import EncoderEntry
from vlmkit_retrieval.sources.items import Item
from vlmkit_retrieval.sync.stored import Record
from vlmkit_retrieval.types import Vector, Vectors

# Vectors by space: of patches there are two, of a text without a term none.
Made = Mapping[str, Vector]
# From a content's hash to an image or a text; None where it cannot be had.
Load = Callable[[str], Any]
# Told a content's hash, and why there are no vectors of it.
Refuse = Callable[[str, str], None]


class Slot:
    """One encoder of an index, whether it is loaded or only remembered.

    Args:
        name: Of the encoder in the index.
        entry: What the index knows of it.
        features: Where its vectors are kept by content.
        encoder: To make vectors; None to use those that are known.

    Attributes:
        name: As above.
        kind: See `encoders.py`.
        fingerprint: Of the encoder.
        of_pixels: It takes an item's pixels, not its text.
    """

    def __init__(self, name: str, entry: EncoderEntry, features: FeatureStore, encoder: Any = None) -> None:
        self.name, self.kind, self.fingerprint = name, entry.kind, entry.fingerprint
        self.of_pixels = entry.kind in ("image", "patches")
        self.runs = encoder is not None
        self._entry, self._features, self._encoder = entry, features, encoder
        assert encoder is None or kind_of(encoder) == self.kind

    @property
    def spaces(self) -> list[str]:
        """The engine's spaces that it fills."""
        return list(self._entry.spaces(self.name))

    def key(self, item: Item) -> str | None:
        """The content that decides its vectors of an item; None where the item has nothing for it."""
        if self.of_pixels:
            return None if item.image is None else item.sha256
        return item.text_sha256

    def lacks(self, record: Record) -> bool:
        """Whether it takes a stored item and is not done with it."""
        takes = record.kind != "text" if self.of_pixels else record.text_sha256 is not None
        return takes and record.encoders.get(self.name) != self.fingerprint

    def is_done(self, record: Record, item: Item) -> bool:
        """Whether the stored vectors are of this encoder and of the item's content."""
        same = record.sha256 == item.sha256 if self.of_pixels else record.text_sha256 == item.text_sha256
        return same and record.encoders.get(self.name) == self.fingerprint

    def known(self, keys: Sequence[str]) -> dict[str, Made]:
        """Vectors from the store, by content."""
        if self.kind == "terms":
            return {}
        if self.kind == "patches":
            patches = self._features.get_patches(self.fingerprint, keys)
            return {key: self._pooled(rows_ND) for key, rows_ND in patches.items()}
        found = self._features.get_many(self.fingerprint, keys)
        return {key: {self.name: vector_D} for key, vector_D in found.items()}

    def embed(self, keys: Sequence[str], load: Load, refuse: Refuse, batch: int) -> dict[str, Made]:
        """Vectors of images or texts by content; all of them are in the store when this returns.

        Args:
            keys: Contents, in order.
            load: The image or the text of a content; None where it cannot be had, and it is left out.
            refuse: Told of a content whose vectors have NaN or Inf, or point nowhere; it is left out, and
                nothing of it is kept.
            batch: So many go through the encoder together.

        Raises:
            RetrievalError: The encoder gave vectors of another shape.
        """
        found: dict[str, Any] = {}
        group: dict[str, Any] = {}
        for number, key in enumerate(keys, start=1):
            content = load(key)
            if content is not None:
                group[key] = content
            if group and (len(group) == batch or number == len(keys)):
                found |= zip(group, self._run(list(group.values())), strict=True)
                group = {}
        reasons = {key: self._complaint(made) for key, made in found.items()}
        for key, reason in reasons.items():
            if reason:
                refuse(key, f"what encoder {self.name!r} made of it {reason}")
        return self._kept({key: made for key, made in found.items() if not reasons[key]})

    def _complaint(self, made: Any) -> str:
        """Why an engine would not store what the encoder made of a content; empty where it would."""
        match self.kind:
            case "terms":
                finite = np.isfinite(np.asarray(made.values, np.float32)).all()
                return "" if finite else "has NaN or Inf; check the encoder"
            case "patches":
                with np.errstate(over="ignore"):  # too large for float16 is Inf, and told
                    rows_ND = np.asarray(made).astype("<f2").astype(np.float32)
                return complaint(rows_ND) or complaint(rows_ND.mean(axis=0)[None])
        return complaint(np.asarray(made)[None])

    def _kept(self, found: Mapping[str, Any]) -> dict[str, Made]:
        if self.kind == "terms":
            return {key: {self.name: terms} if len(terms.indices) else {} for key, terms in found.items()}
        if not found:
            return {}
        if self.kind == "patches":
            self._features.put_patches(self.fingerprint, found)
            return self.known(list(found))  # as rounded as they will be when they come from the store
        self._features.put_many(self.fingerprint, found)
        return {key: {self.name: vector_D} for key, vector_D in found.items()}

    def _run(self, inputs: list[Any]) -> list[Any]:
        methods: dict[EncoderKind, str] = {
            "image": "embed_images",
            "text": "embed_text",
            "terms": "embed_documents",
            "patches": "embed_patches",
        }
        made = getattr(self._encoder, methods[self.kind])(inputs)
        if self.kind in ("image", "text"):
            self._check(np.shape(made), (len(inputs), self._entry.dim))
        elif len(made) != len(inputs):
            raise RetrievalError(f"encoder {self.name!r} gave {len(made)} results for {len(inputs)} inputs")
        if self.kind == "patches":
            for rows_ND in made:
                self._check(np.shape(rows_ND), (len(rows_ND), self._entry.dim))
        return list(made)

    def _check(self, found: tuple[int, ...], expected: tuple[int, int]) -> None:
        if found != expected:
            raise RetrievalError(
                f"encoder {self.name!r} gave vectors of shape {found}, expected is {expected}; "
                "fix the encoder"
            )

    def _pooled(self, rows_ND: Vectors) -> Made:
        return {self.name: rows_ND, pooled_name(self.name): rows_ND.mean(axis=0)}
