"""Encoders whose vectors depend on their company: each row mixes a hash of the whole batch into its own.

An index that they fill tells whether any vector was made in other company than in another index.
"""

from __future__ import annotations

import hashlib

import numpy as np


class _Mixing:
    width = 4

    def __init__(self, name, fingerprint=None):
        self.name = name
        self.fingerprint = fingerprint or f"{name}-1"
        self.embed_dim = self.width
        self.seen = []

    def _rows(self, contents):
        whole = hashlib.sha256(b"".join(contents)).digest()
        self.seen += contents
        rows = [np.frombuffer(hashlib.sha256(whole + own).digest()[:16], "<u4") for own in contents]
        rows = np.array(rows, np.float32).reshape(-1, 4) + 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class MixingImages(_Mixing):
    def embed_images(self, images):
        return self._rows([image.tobytes() for image in images])

    def embed_text(self, texts):
        raise ValueError("images only")


class MixingTexts(_Mixing):
    def embed_text(self, texts):
        return self._rows([text.encode() for text in texts])


class MixingPatches(_Mixing):
    def embed_patches(self, images):
        rows = self._rows([image.tobytes() for image in images])
        return [np.stack([row, row[::-1], np.roll(row, 1)]) for row in rows]


def mixing():
    """One encoder of each kind that has a batch, by name."""
    return [MixingImages("images"), MixingTexts("text"), MixingPatches("patches")]
