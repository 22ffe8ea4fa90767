"""LangChain's standard suite for vector stores, over ours and over others: how many tests does each pass?

    pip install langchain-qdrant   # what it is compared with; leave it out, and its rows are left out
    python benchmarks/langchain_suite.py

Prints a table. No network is needed, nothing is written but to a temporary folder.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter, defaultdict

import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from vlmkit_retrieval.langchain import VlmkitVectorStore

HAS_QDRANT = importlib.util.find_spec("langchain_qdrant") is not None
WIDTH = 6  # of the suite's embeddings


class TestOursInADirectory(VectorStoreIntegrationTests):
    """The embedded engine."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        """An empty store."""
        with VlmkitVectorStore(self.get_embeddings(), tmp_path / "documents") as store:
            yield store


class TestOursInMemory(VectorStoreIntegrationTests):
    """Qdrant's local mode."""

    @pytest.fixture
    def vectorstore(self):
        """An empty store."""
        with VlmkitVectorStore(self.get_embeddings(), ":memory:") as store:
            yield store


class TestLangChainInMemory(VectorStoreIntegrationTests):
    """LangChain's own store, for experiments."""

    @pytest.fixture
    def vectorstore(self):
        """An empty store."""
        return InMemoryVectorStore(self.get_embeddings())


if HAS_QDRANT:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    def qdrant(client, embeddings):
        """Its store over a new collection."""
        client.create_collection("documents", VectorParams(size=WIDTH, distance=Distance.COSINE))
        return QdrantVectorStore(client, "documents", embeddings)

    class TestLangChainQdrantInADirectory(VectorStoreIntegrationTests):
        """langchain-qdrant over `QdrantClient(path=...)`."""

        @pytest.fixture
        def vectorstore(self, tmp_path):
            """An empty store."""
            client = QdrantClient(path=str(tmp_path / "qdrant"))
            yield qdrant(client, self.get_embeddings())
            client.close()

    class TestLangChainQdrantInMemory(VectorStoreIntegrationTests):
        """langchain-qdrant over `QdrantClient(":memory:")`."""

        @pytest.fixture
        def vectorstore(self):
            """An empty store."""
            return qdrant(QdrantClient(":memory:"), self.get_embeddings())


class Count:
    """What became of each test, by class; a broken fixture counts as a test that failed."""

    def __init__(self):
        self.of = defaultdict(dict)

    def pytest_runtest_logreport(self, report):
        """Called by pytest, three times a test."""
        _, store, test = report.nodeid.split("::")
        # The last word on a test is the worst of its three: set up, run, tear down.
        if self.of[store].get(test, "passed") == "passed":
            self.of[store][test] = report.outcome


def main() -> int:
    """Run all, print the table; 1 where one of ours fails a test."""
    count = Count()
    options = ["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    pytest.main([__file__, *options, "--import-mode=importlib"], plugins=[count])
    print("\n| store | passed | failed | skipped |\n| --- | --- | --- | --- |")
    for store, outcomes in count.of.items():
        found = Counter(outcomes.values())
        passed = f"{found['passed']} of {len(outcomes)}"
        print(f"| {store[4:]} | {passed} | {found['failed']} | {found['skipped']} |")
    ours = [outcome for store in count.of if "Ours" in store for outcome in count.of[store].values()]
    return int(not ours or set(ours) != {"passed"})


if __name__ == "__main__":
    sys.exit(main())
