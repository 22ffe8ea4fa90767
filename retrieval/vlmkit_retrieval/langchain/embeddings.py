"""An encoder as LangChain embeddings, of texts and of images in the same space."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from langchain_core.embeddings import Embeddings
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.images import load_image, upright_rgb
from vlmkit_retrieval.types import Embedder, Vectors

Item = TypeVar("Item")
ImageSource = str | os.PathLike[str] | Image.Image


class VlmkitEmbeddings(Embeddings):
    """Embeds texts, and images beside them; vectors have unit length.

    The async methods run in a thread, so the event loop goes on meanwhile.

    Args:
        embedder: An encoder, with a text tower where texts are embedded.
        batch_size: Items that go through the encoder at once.

    Raises:
        RetrievalUsageError: `batch_size` is not possible.
    """

    def __init__(self, embedder: Embedder, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise RetrievalUsageError(f"batch_size is {batch_size}; at least 1 is needed")
        self.embedder = embedder
        self.batch_size = batch_size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text."""
        return self._embed(self.embedder.embed_text, texts)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a text; queries and documents are embedded alike."""
        return self.embed_documents([text])[0]

    def embed_images(self, images: Sequence[ImageSource]) -> list[list[float]]:
        """One vector an image: files, or Pillow images, in any mode; the same as an index makes of them.

        Raises:
            RetrievalError: A file cannot be read or is no usable image; the message names it.
        """
        return self._embed(
            lambda batch: self.embedder.embed_images([_open(image) for image in batch]), images
        )

    def embed_image(self, image: ImageSource) -> list[float]:
        """The vector of an image; see `embed_images`."""
        return self.embed_images([image])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        return await asyncio.to_thread(self.embed_query, text)

    async def aembed_images(self, images: Sequence[ImageSource]) -> list[list[float]]:
        """As `embed_images`."""
        return await asyncio.to_thread(self.embed_images, images)

    async def aembed_image(self, image: ImageSource) -> list[float]:
        """As `embed_image`."""
        return await asyncio.to_thread(self.embed_image, image)

    def _embed(self, embed: Callable[[Sequence[Item]], Vectors], items: Sequence[Item]) -> list[list[float]]:
        return [vector for batch in _batches(items, self.batch_size) for vector in embed(batch).tolist()]


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _open(image: ImageSource) -> Image.Image:
    return upright_rgb(image) if isinstance(image, Image.Image) else load_image(image)
