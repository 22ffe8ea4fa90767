"""The retriever: what it may be asked, what documents say, what is refused."""

from __future__ import annotations

import base64
import io

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from PIL import Image

from vlmkit_retrieval import Bm25Terms, Index, RetrievalError, Searcher, SearchOptions, load_image
from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain import VlmkitRetriever
from vlmkit_retrieval.search import image_space, term_space
from vlmkit_retrieval.types import Sparse


@pytest.fixture
def index(tmp_path, photos, colours):
    with Index.create_or_open(tmp_path / "photos.idx") as index:
        index.sync([photos], colours)
        yield index


@pytest.fixture
def retriever(index, colours):
    return VlmkitRetriever(index=index, embedder=colours, k=2)


@pytest.fixture
def red(photos):
    return str(photos / "red.png")


@pytest.fixture
def blue(photos):
    return photos / "deep/blue.png"


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_documents_say_what_was_found_and_why(retriever, red):
    documents = retriever.invoke("something red")
    assert len(documents) == 2 and documents[0].id == red
    found = documents[0]
    assert found.page_content == "" and found.metadata["path"] == red and found.metadata["kind"] == "image"
    assert found.metadata["score"] > 0.99
    assert found.metadata["explanation"].startswith("colour:text: rank 1, score 1.0000")


def test_an_item_with_text_has_it_as_content(retriever, red):
    """As sync stores captions and pages: `text` beside `kind` and `page`."""
    retriever.index.engine.set_payload({red: {"text": "a stop sign", "kind": "page", "page": 3}})
    [found] = retriever.invoke("something red", k=1)
    assert found.page_content == "a stop sign" and "text" not in found.metadata
    assert (found.metadata["kind"], found.metadata["page"]) == ("page", 3)


async def test_k_and_filter_of_one_call(retriever, red):
    assert len(retriever.invoke("something red", k=3)) == 3
    assert await retriever.ainvoke("red", k=1) == retriever.invoke("red", k=1)
    assert [d.id for d in retriever.invoke("green", filter={"path": red})] == [red]
    retriever.filter = {"path": red}
    assert [d.id for d in retriever.invoke("green")] == [red]
    with pytest.raises(TypeError, match="top_k"):
        retriever.invoke("red", top_k=1)


async def test_images_and_messages(retriever, blue):
    picture, data = load_image(blue), encoded(blue)
    uri = f"data:image/png;base64,{data}"
    asked = [
        picture,
        HumanMessage([{"type": "image", "base64": data, "mime_type": "image/png"}]),
        HumanMessage([{"type": "image_url", "image_url": {"url": uri}}]),
        [{"type": "image", "url": uri}],
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}],
    ]
    for query in asked:
        assert [d.id for d in retriever.invoke(query, k=1)] == [str(blue)]
    assert retriever.batch(asked, k=1) == [retriever.invoke(picture, k=1)] * 5
    assert await retriever.ainvoke(asked[1], k=1) == retriever.invoke(picture, k=1)
    assert retriever.invoke(HumanMessage("something red")) == retriever.invoke("something red")
    chain = RunnableLambda(lambda text: HumanMessage(text)) | retriever
    assert chain.invoke("something red") == retriever.invoke("something red")


def test_a_text_and_an_image_are_one_query(retriever, blue, red):
    """The message, and image= beside a text, are what Index.search makes of both."""
    message = HumanMessage(["something", {"type": "image", "base64": encoded(blue)}, "red"])
    expected = retriever.index.search("something\nred", load_image(blue), embedder=retriever.embedder, k=3)
    both = retriever.invoke(message, k=3)
    assert [d.id for d in both] == [hit.id for hit in expected]
    assert [d.metadata["score"] for d in both] == pytest.approx([hit.score for hit in expected])
    assert "colour:both" in both[0].metadata["explanation"]
    assert retriever.invoke("something\nred", image=load_image(blue), k=3) == both


class Seen(BaseCallbackHandler):
    """What a tracer is shown."""

    def __init__(self):
        self.queries = []

    def on_retriever_start(self, serialized, query, **more):
        self.queries.append(query)


async def test_tracers_see_the_text_alone(retriever, blue):
    seen = Seen()
    message = HumanMessage(["red", {"type": "image", "base64": encoded(blue)}])
    retriever.invoke(message, {"callbacks": [seen]})
    await retriever.ainvoke(load_image(blue), {"callbacks": [seen]})
    assert seen.queries == ["red", ""]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ([{"type": "image", "url": "http://127.0.0.1:1/x.png"}], "is not opened, for a message may come"),
        ([{"type": "image", "url": "file:///etc/passwd"}], "is not opened"),
        ([{"type": "image", "url": "/etc/passwd"}], "is not opened"),
        ([{"type": "image_url", "image_url": {"url": "https://x.invalid/a"}}], "is not opened"),
        ([{"type": "image", "file_id": "f"}], "without 'base64' or 'url'"),
        ([{"type": "image", "path": "/etc/passwd"}], "without 'base64' or 'url'"),
        ([{"type": "image", "base64": "!!"}], "not valid base64"),
        ([{"type": "image", "url": "data:image/png,red"}], "a data URI needs the form"),
        ([{"type": "image", "base64": base64.b64encode(b"GIF89a").decode()}], "damaged image|not an image"),
        ([{"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}], "a block of type 'audio'"),
        ([{"type": "video_url"}], "a block of type 'video_url'"),
        ([{"pixels": [1, 2]}], "a block of type None"),
        (AIMessage("red"), "the query is AIMessage"),
        (7, "the query is int; give a text"),
        ([], "the query text is empty"),
        ("", "the query text is empty"),
    ],
)
def test_what_is_refused(retriever, query, why):
    with pytest.raises(RetrievalError, match=why):
        retriever.invoke(query)


def test_two_images_are_refused(retriever, blue):
    block = {"type": "image", "base64": encoded(blue)}
    with pytest.raises(RetrievalUsageError, match="has 2 images"):
        retriever.invoke([block, block])
    with pytest.raises(RetrievalUsageError, match="image= is another"):
        retriever.invoke([block], image=load_image(blue))


def test_a_bomb_in_a_message_is_refused(retriever):
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    block = {"type": "image", "base64": base64.b64encode(file.getvalue()).decode()}
    with pytest.raises(RetrievalError, match="over 50 million pixels"):
        retriever.invoke([block])


def test_addresses_are_opened_by_a_function_alone(index, colours, blue, red):
    asked = []
    fetch = {"http://a/b.png": blue.read_bytes(), "https://a/text": "text"}.__getitem__
    retriever = VlmkitRetriever(
        index=index, embedder=colours, k=1, fetch_image=lambda url: asked.append(url) or fetch(url)
    )
    [found] = retriever.invoke([{"type": "image", "url": "http://a/b.png"}])
    assert found.id == str(blue) and asked == ["http://a/b.png"]
    with pytest.raises(RetrievalUsageError, match="gave str for"):
        retriever.invoke([{"type": "image", "url": "https://a/text"}])
    with pytest.raises(RetrievalUsageError, match="is not opened"):
        retriever.invoke([{"type": "image", "url": "file:///etc/passwd"}])
    assert len(asked) == 2


def test_options_and_more_spaces(index, colours, red, photos, save_image):
    save_image(photos / "also red.png", "red")
    index.sync([photos], colours)
    terms = Bm25Terms()
    index.engine.ensure({"bm25": Sparse()})
    index.engine.update_vectors({str(photos / "green.png"): {"bm25": terms.embed_documents(["a frog"])[0]}})
    also = [term_space("bm25", terms)]
    retriever = VlmkitRetriever(index=index, embedder=colours, k=3, also=also)
    assert "bm25:text: rank 1" in retriever.invoke("a frog")[0].metadata["explanation"]
    alone = VlmkitRetriever(index=index, embedder=colours, k=3, options=SearchOptions(collapse=True))
    [best, *_] = alone.invoke("something red")
    assert sorted([best.id, *best.metadata["duplicates"]]) == sorted([red, str(photos / "also red.png")])
    searcher = Searcher(index.engine, [image_space("colour", colours), *also])
    assert VlmkitRetriever(index=searcher, k=3).invoke("a frog") == retriever.invoke("a frog")
    with pytest.raises(RetrievalUsageError, match="pass embedder="):
        VlmkitRetriever(index=index).invoke("red")
