"""Re-ranking: each kind by its own cosines, near copies dropped, cut."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document

from vlmkit_retrieval import RetrievalError
from vlmkit_retrieval.langchain import VlmkitCompressor, VlmkitImageLoader


@pytest.fixture
def images(photos):
    """Blue, green, red."""
    return VlmkitImageLoader(photos).load()


def text(content):
    return Document(content, metadata={"kind": "text"})


def names(documents):
    return [d.page_content or d.metadata["path"].rpartition("/")[2] for d in documents]


def test_images_are_ranked_by_their_pixels(colours, images):
    found = VlmkitCompressor(embedder=colours).compress_documents(images, "something red")
    assert names(found)[0] == "red.png" and len(found) == 3
    scores = [document.metadata["rerank_score"] for document in found]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.99
    assert "rerank_score" not in images[0].metadata
    [best] = VlmkitCompressor(embedder=colours, k=1).compress_documents(images, "something green")
    assert names([best]) == ["green.png"]


def test_kinds_take_turns(colours, images):
    """The cosine of any text may be above that of any image, and says nothing about which fits better."""
    texts = [text("a blue note"), text("a red note"), text("red and white")]
    found = VlmkitCompressor(embedder=colours).compress_documents([*texts, *images], "something red")
    assert names(found)[:4] == ["a red note", "red.png", "red and white", names(found)[3]]
    assert [d.metadata["kind"] for d in found] == ["text", "image"] * 3
    other = VlmkitCompressor(embedder=colours).compress_documents([*images, *texts], "something red")
    assert [d.metadata["kind"] for d in other] == ["image", "text"] * 3


async def test_near_copies_go_and_other_kinds_stay(colours, photos, images, save_image):
    save_image(photos / "also red.png", (255, 8, 8))
    documents = [*VlmkitImageLoader(photos).load(), text("red"), text("really red"), text("blue")]
    found = VlmkitCompressor(embedder=colours, near=0.99).compress_documents(documents, "something red")
    assert sorted(names(found)) == ["blue", "blue.png", "green.png", "red", "red.png"]
    assert names(found)[:2] == ["red.png", "red"]
    compressor = VlmkitCompressor(embedder=colours, near=0.99)
    assert await compressor.acompress_documents(documents, "something red") == found


def test_what_cannot_be_compared_comes_last(colours, images):
    scan = Document("", metadata={"kind": "page", "path": "a.pdf", "page": 3})
    found = VlmkitCompressor(embedder=colours).compress_documents([scan, *images], "something red")
    assert found[-1] == scan and len(found) == 4
    assert VlmkitCompressor(embedder=colours).compress_documents([], "red") == []


def test_what_is_not_possible(colours, grey, images, photos):
    with pytest.raises(ValueError, match="k is 0"):  # pydantic's
        VlmkitCompressor(embedder=colours, k=0)
    with pytest.raises(ValueError, match="near is 2"):
        VlmkitCompressor(embedder=colours, near=2.0)
    with pytest.raises(ValueError, match="no text tower"):
        VlmkitCompressor(embedder=grey).compress_documents(images, "red")
    (photos / "red.png").unlink()
    with pytest.raises(RetrievalError, match=r"red\.png: No such file"):
        VlmkitCompressor(embedder=colours).compress_documents(images, "red")
