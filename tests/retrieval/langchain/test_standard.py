"""LangChain's standard suites for vector stores and retrievers, offline: sockets are blocked.

Nothing is skipped, nothing overridden: `has_sync`, `has_async` and `has_get_by_ids` are true.
"""

from __future__ import annotations

import pytest
import pytest_socket
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from vlmkit_retrieval import Bm25Terms, Index, Tenant, open_engine
from vlmkit_retrieval.langchain import IndexVectorStore, VlmkitRetriever, VlmkitVectorStore


@pytest.fixture(autouse=True)
def no_connections():
    pytest_socket.disable_socket(allow_unix_socket=True)  # an event loop has one, for itself
    yield
    pytest_socket.enable_socket()


class TestEdge(VectorStoreIntegrationTests):
    """The embedded engine, in a directory."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        with VlmkitVectorStore(self.get_embeddings(), tmp_path / "documents") as store:
            yield store


class TestMemory(VectorStoreIntegrationTests):
    """Qdrant's local mode without files."""

    @pytest.fixture
    def vectorstore(self):
        with VlmkitVectorStore(self.get_embeddings(), ":memory:") as store:
            yield store


class TestLocal(VectorStoreIntegrationTests):
    """Qdrant's local mode in files."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        with VlmkitVectorStore(self.get_embeddings(), f"local:{tmp_path / 'documents'}") as store:
            yield store


class TestTenant(VectorStoreIntegrationTests):
    """One tenant of an engine in which another has documents with the same ids."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        with open_engine(tmp_path / "documents") as engine:
            bob = VlmkitVectorStore(self.get_embeddings(), Tenant(engine, "bob"))
            bob.add_texts(["foo", "bar", "baz"], ids=["1", "2", "foo"])
            yield VlmkitVectorStore(self.get_embeddings(), Tenant(engine, "alice"))
            assert len(bob.get_by_ids(["1", "2", "foo"])) == 3


class TestHybrid(VectorStoreIntegrationTests):
    """Vectors and BM25, fused."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        with VlmkitVectorStore(self.get_embeddings(), tmp_path / "documents", terms=Bm25Terms()) as store:
            yield store


class OfAnIndex:
    """An index of four images."""

    retriever_query_example = "something red"

    @pytest.fixture(autouse=True)
    def given(self, tmp_path, photos, colours, save_image):
        save_image(photos / "white.png", "white")
        with Index.create_or_open(tmp_path / "photos.idx") as index:
            index.sync([photos], colours)
            self.index, self.embedder = index, colours
            yield


class TestRetriever(OfAnIndex, RetrieversIntegrationTests):
    retriever_constructor = VlmkitRetriever

    @property
    def retriever_constructor_params(self):
        return {"index": self.index, "embedder": self.embedder}


class TestStoreOfDocuments(RetrieversIntegrationTests):
    """LangChain's own retriever over a store; it takes `k` in a call, and has none of its own."""

    retriever_query_example = "foo"

    @pytest.fixture(autouse=True)
    def given(self, tmp_path):
        embeddings = VectorStoreIntegrationTests.get_embeddings()
        with VlmkitVectorStore(embeddings, tmp_path / "documents") as store:
            store.add_texts(["foo", "bar", "baz", "boo"])
            self.store = store
            yield

    def retriever_constructor(self, k=4):
        return self.store.as_retriever(search_kwargs={"k": k})


class TestStoreOfAnIndex(OfAnIndex, RetrieversIntegrationTests):
    def retriever_constructor(self, k=4):
        return IndexVectorStore(self.index, self.embedder).as_retriever(search_kwargs={"k": k})
