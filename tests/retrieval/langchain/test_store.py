"""The vector store beyond the standard suite: what is stored, found, refused, and done at the same time."""

from __future__ import annotations

import asyncio
import datetime
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image

from vlmkit_retrieval import Bm25Terms, Index, RetrievalError, open_engine
from vlmkit_retrieval.errors import IndexLockedError, RetrievalUsageError
from vlmkit_retrieval.langchain import VlmkitEmbeddings, VlmkitVectorStore

FAKE = DeterministicFakeEmbedding(size=6)
TEXTS = [f"text {n}" for n in range(30)]


@pytest.fixture(params=["edge", "memory"])
def store(request, tmp_path):
    with VlmkitVectorStore(FAKE, {"edge": tmp_path / "d", "memory": ":memory:"}[request.param]) as store:
        yield store


def ids(documents):
    return [document.id for document in documents]


def test_ids_are_any_text_and_a_given_one_goes_first(store):
    documents = [Document("a", id="own"), Document("b", id="own too"), Document("c"), Document("d")]
    given = store.add_documents(documents, ids=["ünï/🦜 #1", None, "x" * 300, None])
    assert given[:3] == ["ünï/🦜 #1", "own too", "x" * 300] and len(given[3]) == 36
    found = store.get_by_ids([*reversed(given), "unknown", given[0]])
    assert [(d.id, d.page_content) for d in found] == list(zip(given[::-1], "dcba"))
    assert documents[0].id == "own"


def test_of_several_with_one_id_the_last_stays(store):
    assert store.add_texts(["a", "b", "a new"], ids=["1", "2", "1"]) == ["1", "2", "1"]
    assert [d.page_content for d in store.get_by_ids(["1", "2"])] == ["a new", "b"]
    assert store.engine.count() == 2


def random_value(draw: random.Random, depth=0):
    kinds = [None, True, False, 0, 1, -(2**63), 2**63 - 1, 1.0, -0.5, 1e300, 5e-324, "", "text", "日本\n\0"]
    if depth < 3 and draw.random() < 0.4:
        values = [random_value(draw, depth + 1) for _ in range(draw.randrange(4))]
        return values if draw.random() < 0.5 else dict(zip(["a", "b.c", 'd"[0]', ""], values))
    return draw.choice(kinds)


def exact(value):
    """With types, so that 1 and 1.0 differ."""
    if isinstance(value, dict):
        return {key: exact(one) for key, one in value.items()}
    return [exact(one) for one in value] if isinstance(value, list) else (type(value), value)


def test_metadata_come_back_exactly(store):
    draw = random.Random(0)
    keys = ["text", "metadata", "_id", "id", "a.b", "_vlmkit_id", "ü", ""]
    given = [{key: random_value(draw) for key in draw.sample(keys, 3)} for _ in range(200)]
    order = store.add_texts(["t"] * 200, given)
    assert [exact(d.metadata) for d in store.get_by_ids(order)] == list(map(exact, given))
    assert {d.id: exact(d.metadata) for d in store.similarity_search("t", k=200)} == dict(
        zip(order, map(exact, given))
    )


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"size": (1, 2)}, r"would come back as \{'size': \[1, 2\]\}"),
        ({"by page": {1: "a"}}, "would come back as"),
        ({"x": float("nan")}, "not JSON"),
        ({"day": datetime.date(2026, 1, 1)}, "not JSON"),
    ],
)
def test_metadata_that_would_change_are_refused(store, metadata, why):
    with pytest.raises(RetrievalError, match=why):
        store.add_texts(["a", "b"], [{}, metadata])
    assert store.engine.spaces() == {} or store.engine.count() == 0


def test_lists_must_be_as_long(store):
    for metadatas, given in (([{}], None), (None, ["1"]), ([], None)):
        with pytest.raises(RetrievalUsageError, match=r"2 texts with|2 documents with"):
            store.add_texts(["a", "b"], metadatas, ids=given)
    with pytest.raises(RetrievalUsageError, match="unknown argument 'bulk'"):
        store.add_texts(["a"], bulk=True)
    with pytest.raises(RetrievalUsageError, match=r"unknown argument 'where' \(possible: k, filter\)"):
        store.similarity_search("a", where={})
    with pytest.raises(RetrievalUsageError, match="batch_size is 0"):
        store.add_texts(["a"], batch_size=0)


def test_filters_are_on_metadata(store):
    metadata = [{"n": n, "kind": "even" if n % 2 == 0 else "odd", "at": {"page": n}} for n in range(30)]
    store.add_texts(TEXTS, metadata, ids=list(map(str, range(30))), batch_size=7)

    def passed(filter):
        return sorted(int(id) for id in ids(store.similarity_search("text 3", k=30, filter=filter)))

    assert passed({"kind": "even", "n": {"$gte": 20}}) == [20, 22, 24, 26, 28]
    assert passed({"at.page": [3, 5]}) == [3, 5]
    assert passed({"$or": [{"n": 1}, {"$not": {"n": {"$lt": 29}}}]}) == [1, 29]
    assert passed({"$id": ["4", "5"], "kind": "even"}) == [4]
    assert passed({"text": "text 3"}) == []  # of the metadata, not of what is stored beside them
    assert passed({}) == list(range(30))
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"n": {"$lt": 2}}})
    assert sorted(ids(retriever.invoke("text 9"))) == ["0", "1"]
    with pytest.raises(RetrievalUsageError, match=r"no word '\$near'"):
        store.similarity_search("a", filter={"$near": 1})
    with pytest.raises(RetrievalUsageError, match="filter: found str"):
        store.similarity_search("a", filter="kind = 1")
    assert store.delete(filter={"kind": "odd"}) is True
    assert passed(None) == list(range(0, 30, 2))
    for wrong in ({}, {"ids": ["1"], "filter": {}}):
        with pytest.raises(RetrievalUsageError, match="delete takes ids or a filter"):
            store.delete(**wrong)
    store.delete(filter={})
    assert store.similarity_search("text 3") == [] == store.max_marginal_relevance_search("text 3")


@pytest.fixture
def reference():
    """LangChain's own store, of the same texts and embeddings."""
    store = InMemoryVectorStore(FAKE)
    store.add_texts(TEXTS, ids=TEXTS)
    return store


def test_scores_and_order_are_those_of_langchains_own_store(store, reference):
    store.add_texts(TEXTS, ids=TEXTS)
    for query in ("text 3", "something else"):
        ours, theirs = (s.similarity_search_with_score(query, k=9) for s in (store, reference))
        assert [d.id for d, _ in ours] == [d.id for d, _ in theirs]
        assert [s for _, s in ours] == pytest.approx([s for _, s in theirs], abs=1e-6)
        vector = FAKE.embed_query(query)
        assert ids(store.similarity_search_by_vector(vector, k=9)) == [d.id for d, _ in ours]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 1.0])
async def test_mmr_is_that_of_langchains_own_store(store, reference, part):
    store.add_texts(TEXTS, ids=TEXTS)
    arguments = {"k": 6, "fetch_k": 20, "lambda_mult": part}
    expected = ids(reference.max_marginal_relevance_search("text 3", **arguments))
    assert ids(store.max_marginal_relevance_search("text 3", **arguments)) == expected
    assert ids(await store.amax_marginal_relevance_search("text 3", **arguments)) == expected
    vector = FAKE.embed_query("text 3")
    assert ids(store.max_marginal_relevance_search_by_vector(vector, **arguments)) == expected
    with pytest.raises(RetrievalUsageError, match="lambda_mult is 2"):
        store.max_marginal_relevance_search("text 3", lambda_mult=2)


async def test_relevance_lies_between_0_and_1(store):
    store.add_texts(TEXTS, ids=TEXTS)
    scored = store.similarity_search_with_score("text 3", k=30)
    relevance = store.similarity_search_with_relevance_scores("text 3", k=30)
    assert [s for _, s in relevance] == pytest.approx([(1 + s) / 2 for _, s in scored], abs=1e-6)
    assert relevance[0][1] == pytest.approx(1) and relevance[-1][1] < 0.5
    above = await store.asimilarity_search_with_relevance_scores("text 3", k=30, score_threshold=0.7)
    assert [d.id for d, _ in above] == [d.id for d, s in relevance if s >= 0.7]
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99}
    )
    assert ids(retriever.invoke("text 3")) == ["text 3"]


def test_images_are_stored_and_found_beside_texts(tmp_path, photos, colours):
    embeddings = VlmkitEmbeddings(colours)
    red, blue = photos / "red.png", photos / "deep/blue.png"
    with VlmkitVectorStore(embeddings, tmp_path / "d") as store:
        store.add_images([red, Image.open(blue)], captions=["a stop sign", ""], ids=["r", "b"])
        store.add_texts(["green grass"], [{"kind": "note"}], ids=["g"])
        assert ids(store.similarity_search("something red", k=1)) == ["r"]
        assert ids(store.similarity_search_by_image(blue, k=1)) == ["b"]
        assert ids(asyncio.run(store.asimilarity_search_by_image(Image.open(blue), k=1))) == ["b"]
        assert ids(store.similarity_search_by_image(red, k=3, filter={"kind": "note"})) == ["g"]
        [sign, sky] = store.get_by_ids(["r", "b"])
        assert (sign.page_content, sign.metadata) == ("a stop sign", {"path": str(red)})
        assert (sky.page_content, sky.metadata) == ("", {})
        asyncio.run(store.aadd_images([red], [{"n": 1}], ids=["r"]))
        assert store.get_by_ids(["r"])[0].metadata == {"n": 1}
        with pytest.raises(RetrievalUsageError, match=r"1 texts with 2 metadatas"):
            store.add_images([red, blue], captions=["one"])
    with (
        VlmkitVectorStore(FAKE, ":memory:") as store,
        pytest.raises(RetrievalUsageError, match="no embed_images"),
    ):
        store.similarity_search_by_image(red)


def test_images_are_not_embedded_again_as_texts(tmp_path, photos, colours):
    """A caption says nothing about the vector of its picture: such a store must open again."""
    with VlmkitVectorStore(VlmkitEmbeddings(colours), tmp_path / "d") as store:
        store.add_images([photos / "red.png"], captions=["blue"])
    with VlmkitVectorStore(VlmkitEmbeddings(colours), tmp_path / "d") as store:
        assert [d.page_content for d in store.similarity_search("red")] == ["blue"]


def test_a_store_is_there_again(tmp_path):
    with VlmkitVectorStore.from_texts(TEXTS, FAKE, ids=TEXTS, location=tmp_path / "d") as store:
        expected = store.similarity_search("text 3")
        with pytest.raises(IndexLockedError, match="already open"):
            VlmkitVectorStore(FAKE, tmp_path / "d")
    with VlmkitVectorStore(FAKE, tmp_path / "d") as store:
        assert store.similarity_search("text 3") == expected


class OtherModel(DeterministicFakeEmbedding):
    """Of the same width, and other vectors."""

    def embed_documents(self, texts):
        return super().embed_documents(["other " + text for text in texts])


def test_other_embeddings_are_refused(tmp_path):
    VlmkitVectorStore.from_texts(TEXTS, FAKE, location=tmp_path / "d").close()
    with pytest.raises(RetrievalError, match=r"another vector by OtherModel now \(cosine"):
        VlmkitVectorStore(OtherModel(size=6), tmp_path / "d")
    with pytest.raises(RetrievalError, match="have 6 numbers, DeterministicFakeEmbedding gives 7"):
        VlmkitVectorStore(DeterministicFakeEmbedding(size=7), tmp_path / "d")
    with pytest.raises(RetrievalUsageError, match="stored without BM25 terms; leave out"):
        VlmkitVectorStore(FAKE, tmp_path / "d", terms=Bm25Terms())
    VlmkitVectorStore(FAKE, tmp_path / "d").close()  # each of them has let go of the directory
    VlmkitVectorStore.from_texts(TEXTS, FAKE, location=tmp_path / "h", terms=Bm25Terms()).close()
    with pytest.raises(RetrievalUsageError, match="stored with BM25 terms; pass"):
        VlmkitVectorStore(FAKE, tmp_path / "h")


def test_a_failed_start_lets_go_of_the_directory(tmp_path):
    with pytest.raises(RetrievalUsageError, match="3 texts with 1 metadatas") as kept:  # with its frames
        VlmkitVectorStore.from_texts(["a", "b", "c"], FAKE, [{}], location=tmp_path / "d")
    assert kept.value is not None
    with open_engine(tmp_path / "d") as engine:
        store = VlmkitVectorStore(FAKE, engine)
        store.close()
        assert engine.spaces() == {}  # the caller's engine is open


def test_words_and_vectors_are_fused(tmp_path):
    """The vectors of these embeddings mean nothing, so what is found first is found by its word."""
    texts = [*TEXTS, "the part number is CR-7891"]
    with VlmkitVectorStore.from_texts(
        texts, FAKE, ids=texts, location=tmp_path / "h", terms=Bm25Terms()
    ) as h:
        dense = VlmkitVectorStore.from_texts(texts, FAKE, ids=texts)
        query = "where is cr-7891?"
        assert texts[-1] not in ids(dense.similarity_search(query, k=3))
        assert texts[-1] in ids(h.similarity_search(query, k=2))
        assert texts[-1] in ids(asyncio.run(h.amax_marginal_relevance_search(query, k=4, lambda_mult=0.5)))
        assert ids(h.similarity_search(query, k=9, filter={"$id": [texts[2]]})) == [texts[2]]
        with pytest.raises(RetrievalUsageError, match="no threshold fits"):
            h.similarity_search_with_relevance_scores(query)


async def test_async_awaits_the_embeddings_own_and_leaves_the_loop(tmp_path):
    """Nothing is embedded by a sync call, and the loop runs on while the engine works."""

    class OnlyAsync(DeterministicFakeEmbedding):
        async def aembed_documents(self, texts):
            return [DeterministicFakeEmbedding.embed_query(self, text) for text in texts]

        async def aembed_query(self, text):
            return DeterministicFakeEmbedding.embed_query(self, text)

        def embed_query(self, text):
            raise AssertionError("a sync call in async code")

        embed_documents = embed_query

    gate = threading.Event()
    with VlmkitVectorStore(OnlyAsync(size=6), tmp_path / "d") as store:
        assert await store.aadd_texts(["a", "b"], [{"n": 1}, {"n": 2}], ids=["1", "2"]) == ["1", "2"]
        search = store.engine.search
        store.engine.search = lambda *a, **o: gate.wait(20) and search(*a, **o)
        task = asyncio.gather(
            store.asimilarity_search("a", k=1), store.amax_marginal_relevance_search("b", k=1)
        )
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.set()
        assert [ids(found) for found in await task] == [["1"], ["2"]]
        assert await store.aget_by_ids(["2"]) == [Document("b", id="2", metadata={"n": 2})]
        assert await store.adelete(["1"]) and store.engine.count() == 1


def test_threads_may_write_and_search_at_once(store):
    def work(n):
        store.add_texts([f"{n}/{m}" for m in range(20)], ids=[f"{n}/{m}" for m in range(20)], batch_size=5)
        return len(store.similarity_search(f"{n}/3", k=5)), len(
            store.get_by_ids([f"{n}/{m}" for m in range(20)])
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [(5, 20)] * 8
    assert store.engine.count() == 160


def test_an_index_is_a_store_to_read(tmp_path, photos, colours, grey):
    with Index.create_or_open(tmp_path / "photos.idx") as index:
        index.sync([photos], colours)
        view = VlmkitVectorStore.from_index(index, colours)
        [(found, score)] = view.similarity_search_with_score("something red", k=1)
        red = str(photos / "red.png")
        assert (found.id, found.page_content) == (red, "") and score > 0.99
        assert found.metadata["path"] == red and found.metadata["kind"] == "image"
        assert ids(view.similarity_search_by_image(photos / "deep/blue.png", k=1)) == [
            str(photos / "deep/blue.png")
        ]
        assert ids(view.similarity_search("red", k=3, filter={"path": red})) == [red]
        assert len(view.max_marginal_relevance_search("red", k=3)) == 3
        for write in (
            lambda: view.add_texts(["a"]),
            lambda: view.delete([red]),
            lambda: view.from_texts([], FAKE),
        ):
            with pytest.raises(RetrievalUsageError, match="filled by its folders alone"):
                write()
        with pytest.raises(RetrievalUsageError, match=r"something else \(colour\)"):
            VlmkitVectorStore(FAKE, index.engine)
        with pytest.raises(RetrievalError, match="was not filled by encoder 'grey'"):
            VlmkitVectorStore.from_index(index, grey)
        assert index.engine.count() == 3


def test_vectors_that_cannot_be_stored_are_refused(store):
    class Broken(DeterministicFakeEmbedding):
        def embed_documents(self, texts):
            return [[np.nan] * 6 for _ in texts]

    store.embedding = Broken(size=6)
    with pytest.raises(RetrievalError, match="NaN"):
        store.add_texts(["a"])
    store.embedding = FAKE
    assert store.similarity_search("a") == []
