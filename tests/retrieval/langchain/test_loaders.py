"""Loaders: what documents say, and that bad files are lines, not crashes."""

from __future__ import annotations

import logging
import shutil
import sys

import hostile
import pytest
from pdfs import pdf
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.langchain import VlmkitEmbeddings, VlmkitImageLoader, VlmkitPdfLoader, VlmkitVectorStore
from vlmkit_retrieval.sources import Rules, suffixes_of


def test_images_with_captions(photos):
    (photos / "red.txt").write_text("a stop sign")
    documents = VlmkitImageLoader(photos).load()
    assert [d.id for d in documents] == [str(photos / n) for n in ("deep/blue.png", "green.png", "red.png")]
    assert [d.page_content for d in documents] == ["", "", "a stop sign"]
    red = documents[2].metadata
    assert (red["source"], red["path"], red["kind"], red["width"]) == (documents[2].id,) * 2 + ("image", 8)
    assert len(red["sha256"]) == 64
    assert [d.id for d in VlmkitImageLoader([photos / "deep", photos / "red.png"]).load()] == [
        documents[0].id,
        documents[2].id,
    ]


async def test_pages_of_pdf_files(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("the first page", "the second page", outline=[("Chapter", 1)]))
    (tmp_path / "b.pdf").write_bytes(pdf("another file"))
    loader = VlmkitPdfLoader(tmp_path, rules=Rules(dpi=72))
    documents = loader.load()
    path = str(tmp_path / "a.pdf")
    assert [d.page_content for d in documents] == ["the first page", "the second page", "another file"]
    assert documents[1].id == f"{path}#page=2"
    place = documents[1].metadata
    assert (place["source"], place["page"], place["pages"], place["title"]) == (path, 2, 2, "Chapter")
    assert (place["kind"], place["width"], place["height"]) == ("page", 612, 792)
    assert [d async for d in loader.alazy_load()] == documents
    assert loader.refused == []


def test_bad_files_are_told_and_the_others_load(photos, caplog):
    jpeg = hostile.encoded(Image.effect_noise((200, 200), 50), "JPEG")
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])  # its header is whole
    (photos / "note.png").write_text("hello")
    loader = VlmkitImageLoader(photos)
    with caplog.at_level(logging.WARNING):
        assert len(loader.load()) == 3
    assert [bad.path.rpartition("/")[2] for bad in loader.refused] == ["cut.jpg", "note.png"]
    assert "damaged image" in loader.refused[0].reason and "not an image" in loader.refused[1].reason
    assert len(caplog.messages) == 2 and "cut.jpg" in caplog.messages[0]
    assert len(loader.load()) == 3 and len(loader.refused) == 2  # of the last load
    told = []
    caplog.clear()
    VlmkitImageLoader(photos, on_refused=told.append).load()
    assert told == loader.refused and not caplog.messages


def test_loading_is_lazy(photos):
    documents = VlmkitImageLoader(photos).lazy_load()
    first = next(documents)
    (photos / "green.png").write_text("not any more")
    assert first.metadata["path"].endswith("blue.png")
    assert [d.metadata["path"].rpartition("/")[2] for d in documents] == ["red.png"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Every case of the hostile suite, in a folder of its name."""
    top = tmp_path_factory.mktemp("hostile")
    yield top / "corpus", hostile.build(top, "http://127.0.0.1:1/x.png")
    shutil.rmtree(top)


@pytest.mark.skipif(sys.platform != "linux", reason="needs pipes and names of any bytes")
@pytest.mark.parametrize(
    ("loader", "kind", "slow"),
    [
        (VlmkitImageLoader, "images", set()),
        (VlmkitPdfLoader, "pdf", {"pdf-draws-itself", "pdf-text-of-1500-megabytes"}),
    ],
)
def test_hostile_files_give_documents_or_lines(corpus, loader, kind, slow):
    """As many as the suite of the readers says; what takes seconds of PDFium is left to that suite."""
    folder, cases = corpus
    seen = 0
    for name, case in cases.items():
        found = loader(folder / name, on_refused=lambda bad: None)
        ends = {path.suffix.lower() for path in (folder / name).rglob("*")}
        if name in slow or not ends or not ends <= {*suffixes_of([kind]), "", ".txt", ".json", ".jsonl"}:
            continue
        documents = found.load()
        seen += 1
        assert documents or found.refused or name.startswith("text"), name
        assert not any(hostile.SECRET in document.page_content for document in documents), name
        if not name.startswith("text"):
            assert (len(documents), len(found.refused)) == (case.items, len(case.refused)), name
    assert seen > 15


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(RetrievalUsageError, match="nowhere does not exist; name a folder"):
        VlmkitImageLoader(tmp_path / "nowhere")
    with pytest.raises(RetrievalUsageError, match="no path is named"):
        VlmkitPdfLoader([])


def test_documents_go_into_a_store_as_they_are(photos, colours, tmp_path):
    documents = VlmkitImageLoader(photos).load()
    with VlmkitVectorStore(VlmkitEmbeddings(colours), tmp_path / "d") as store:
        metadatas = [document.metadata for document in documents]
        given = [document.id for document in documents]
        store.add_images([m["path"] for m in metadatas], metadatas, ids=given)
        assert store.get_by_ids(given) == documents
