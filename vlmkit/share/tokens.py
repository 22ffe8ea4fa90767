"""Tokenised conversations that other runs find."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.data.known_rows import KnownRows
from vlmkit.data.sample import IMAGE, Conversation
from vlmkit.data.tokens import TokenRow
from vlmkit.share.blobs import Blobs

# Rows that are written in one go.
BATCH = 64


class SharedRows(KnownRows):
    """Rows that are also looked for, and kept, in a file.

    Two processes may tokenise one conversation at the same time and write the same: a lock would cost more.

    Args:
        path: One file for each tokenizer and prompt format; see `keys.tokens_key`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._blobs = Blobs(path)
        self._unwritten: dict[bytes, bytes] = {}

    def get(self, conversation: Conversation) -> TokenRow | None:
        """See `KnownRows.get`."""
        row = super().get(conversation)
        if row is None:
            stored = self._blobs.get(_key(conversation))
            row = None if stored is None else _decoded(stored)
            if row is not None:
                super().put(conversation, row)
        return row

    def put(self, conversation: Conversation, row: TokenRow) -> None:
        """See `KnownRows.put`."""
        super().put(conversation, row)
        self._unwritten[_key(conversation)] = _encoded(row)
        if len(self._unwritten) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        self._blobs.put_many(self._unwritten)
        self._unwritten = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is unwritten is written here, not by a copy in another process."""
        return {**self.__dict__, "_unwritten": {}}


def _key(conversation: Conversation) -> bytes:
    turns = [
        [message.role, [None if part is IMAGE else part for part in message.parts], message.weight]
        for message in conversation
    ]
    return hashlib.sha256(json.dumps(turns).encode()).digest()


def _encoded(row: TokenRow) -> bytes:
    return np.array(row.ids, "<i4").tobytes() + np.array(row.weights, "<f8").tobytes()


def _decoded(blob: bytes) -> TokenRow:
    count = len(blob) // 12
    ids = np.frombuffer(blob, "<i4", count)
    weights = np.frombuffer(blob, "<f8", count, offset=4 * count)
    return TokenRow(tuple(ids.tolist()), tuple(weights.tolist()))
