"""The public names, and what importing them loads."""

from __future__ import annotations

import pytest

import vlmkit_retrieval.langchain as ours

PUBLIC = {
    "IndexVectorStore", "VlmkitCompressor", "VlmkitEmbeddings", "VlmkitImageLoader", "VlmkitPdfLoader",
    "VlmkitRecordManager", "VlmkitRetriever", "VlmkitVectorStore",
}  # fmt: skip


def test_public_names_are_there_and_no_others():
    assert set(ours.__all__) == PUBLIC == {name for name in dir(ours) if name[0].isupper()}
    assert all(getattr(ours, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'VectorStore'"):
        _ = ours.VectorStore


def test_they_load_neither_torch_nor_an_engine(python):
    heavy = ("torch", "transformers", "qdrant_client", "qdrant_edge", "pypdfium2", "vlmkit")
    process = python(
        "import sys, vlmkit_retrieval.langchain as ours\n"
        "loaded = [getattr(ours, name) for name in ours.__all__]\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    output, errors = process.communicate(timeout=100)
    assert (output.strip(), errors) == ("[]", "")
