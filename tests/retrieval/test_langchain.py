from __future__ import annotations

import asyncio

import pytest

from vlmkit_retrieval.index import Index

pytest.importorskip("langchain_core")


@pytest.fixture
def retriever(tmp_path, photos, colours):
    from vlmkit_retrieval.langchain import ImageRetriever

    with Index.create_or_open(tmp_path / "photos.idx") as index:
        index.sync([photos], colours)
        yield ImageRetriever(index=index, embedder=colours, k=2)


def test_documents_name_file_and_score(retriever, photos):
    documents = retriever.invoke("something red")
    assert len(documents) == 2
    path = str(photos / "red.png")
    assert (documents[0].page_content, documents[0].id) == ("red.png", path)
    assert documents[0].metadata.keys() == {"path", "score", "id"}
    assert documents[0].metadata["path"] == path
    assert documents[0].metadata["score"] > 0.99


def test_k_of_one_call_and_async(retriever):
    assert len(retriever.invoke("something red", k=3)) == 3
    assert asyncio.run(retriever.ainvoke("something red", k=1)) == retriever.invoke("something red", k=1)
