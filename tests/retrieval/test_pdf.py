from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pdfs
import pypdfium2
import pytest
from PIL import Image

from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.scan import scan
from vlmkit_retrieval.sources import Reader, Rules
from vlmkit_retrieval.sources import pdf as pdf_source
from vlmkit_retrieval.sources.pdf_process import Document, PdfCrash, PdfProcess

OUTLINE = [("Install", 1), ("Configure", 1), ("Remove", 3)]


@pytest.fixture
def manual(tmp_path) -> Path:
    texts = ["A manual\n(c) us", "Install it\nso", "", "Remove it", "The end"]
    path = tmp_path / "docs" / "man#page=1.pdf"
    path.parent.mkdir()
    path.write_bytes(pdfs.pdf(*[t.replace("(c)", "by") for t in texts], outline=OUTLINE))
    return path


@pytest.fixture
def read():
    """Items of one file, with the reader."""
    readers = []

    def items(path: Path, **rules):
        found = scan([path], (".pdf",))
        readers.append(Reader(found.files, ["pdf"], Rules(**rules)))
        return list(readers[-1].read(*found.files.values())), readers[-1]

    yield items
    for reader in readers:
        reader.close()


def test_text_and_picture_are_pdfiums(manual, read):
    items, reader = read(manual, dpi=100)
    assert reader.refused == []
    document = pypdfium2.PdfDocument(manual)
    assert len(items) == len(document) == 5
    for item, page in zip(items, document):
        text = page.get_textpage().get_text_bounded().replace("\r\n", "\n").strip()
        assert item.text == (text or None)
        expected = page.render(scale=100 / 72).to_pil().convert("RGB")
        image = item.image()
        assert image.size == (item.payload["width"], item.payload["height"]) == expected.size
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert np.asarray(items[0].image()).min() < 100  # there is text on it
    document.close()


def test_ids_and_payloads(manual, read):
    items, _ = read(manual)
    id = manual.as_posix()
    assert [item.id for item in items] == [f"{id}#page={n}" for n in range(1, 6)]
    assert {(item.payload["path"], item.payload["pages"], item.kind) for item in items} == {(id, 5, "page")}
    assert [item.payload["outline"] for item in items] == [[], ["Install", "Configure"], [], ["Remove"], []]
    assert [item.payload["title"] for item in items] == [None, "Install", "Configure", "Remove", "Remove"]


def test_what_decides_a_picture_decides_its_hash(manual, read):
    hashes = [item.sha256 for item in read(manual)[0]]
    assert len(set(hashes)) == 5
    copy = manual.with_name("copy.pdf")
    copy.write_bytes(manual.read_bytes())
    assert [item.sha256 for item in read(copy)[0]] == hashes
    assert not set(hashes) & {item.sha256 for item in read(manual, dpi=100)[0]}


def test_pictures_are_drawn_in_any_order_and_of_several_files(manual, read, tmp_path):
    other = tmp_path / "other.pdf"
    other.write_bytes(pdfs.pdf("something else", box="0 0 300 200"))
    found = scan([manual, other], (".pdf",))
    with Reader(found.files, ["pdf"]) as reader:
        pages = [item for file in found.files.values() for item in reader.read(file)]
        sizes = {item.id: item.image().size for item in reversed(pages)}
    assert sizes == {item.id: (item.payload["width"], item.payload["height"]) for item in pages}
    assert sizes[f"{other}#page=1"] == (625, 417)


def test_threads_wait_for_each_other(manual, read, tmp_path):
    """Each asks for pages of another file: none may be given the other's."""
    (tmp_path / "other.pdf").write_bytes(pdfs.pdf(*"abcde", box="0 0 300 200"))
    found = scan([manual, tmp_path / "other.pdf"], (".pdf",))
    with Reader(found.files, ["pdf"]) as reader:
        pages = [item for file in found.files.values() for item in reader.read(file)]
        with ThreadPoolExecutor(2) as pool:
            sizes = list(pool.map(lambda item: item.image().size, [*pages, *reversed(pages)]))
    expected = [(item.payload["width"], item.payload["height"]) for item in pages]
    assert sizes == [*expected, *reversed(expected)]


def test_a_file_that_changed_gives_no_picture(manual, read):
    items, reader = read(manual)
    reader._sources[".pdf"]._process.close()  # as after a crash
    manual.write_bytes(pdfs.pdf("another"))
    with pytest.raises(FileError, match="changed while it was read"):
        items[0].image()


def test_the_size_is_known_before_it_is_drawn(tmp_path, read, monkeypatch):
    monkeypatch.setattr(PdfProcess, "draw", None)  # nothing can be drawn here
    path = tmp_path / "wide.pdf"
    objects = pdfs.page_objects([pdfs.text_stream("one"), pdfs.text_stream("two"), pdfs.text_stream("three")])
    for page in (12, 14):
        objects[page] = objects[page].replace(b"0 0 612 792", b"0 0 14400 14400")
    path.write_bytes(pdfs.assemble(objects))
    items, reader = read(path)
    assert [item.payload["page"] for item in items] == [1]
    [line] = reader.refused
    assert line.path == path.as_posix()
    assert line.reason.startswith("page 2: 30001x30001 is over 50 million pixels")
    assert line.reason.endswith("(and 1 pages more)")
    assert len(read(path, dpi=20)[0]) == 3


def test_pdfium_that_died_costs_a_page_and_is_started_again(manual, read, monkeypatch):
    page, killed = PdfProcess.page, []

    def dies_once(process: PdfProcess, document: Document, number: int):
        if number == 2 and not killed:
            killed.append(number)
            os.kill(process._process.pid, signal.SIGKILL)
        return page(process, document, number)

    monkeypatch.setattr(PdfProcess, "page", dies_once)
    items, reader = read(manual)
    assert [item.payload["page"] for item in items] == [1, 2, 4, 5]
    assert [bad.reason[:20] for bad in reader.refused] == ["page 3: it took more"]
    assert isinstance(items[0].image(), Image.Image)


def test_a_file_that_kills_it_again_and_again_is_given_up(manual, read, monkeypatch):
    asked = []

    def dies(process: PdfProcess, document: Document, number: int):
        asked.append(number)
        raise PdfCrash("it took more than 60 seconds")

    monkeypatch.setattr(PdfProcess, "page", dies)
    items, reader = read(manual)
    assert (items, asked) == ([], [0, 1, 2])
    assert reader.refused[0].reason == (
        "page 1: it took more than 60 seconds (given up at page 3 of 5) (and 2 pages more)"
    )


def test_it_is_stopped_when_it_takes_too_long(manual):
    process = PdfProcess(seconds=0.01)
    with pytest.raises(PdfCrash, match=r"it took more than 0\.01 seconds"):
        process.open(Document("", manual.read_bytes))
    process.close()
    process.close()


def test_text_without_what_is_no_character():
    assert pdf_source._plain("a\r\nb\0\ufffe\ud800c\rd ") == "a\nbc\nd"


def test_a_page_without_text_is_a_page(manual, read):
    empty = read(manual)[0][2]
    assert empty.text is None
    assert empty.text_sha256 is None
    assert isinstance(empty.image(), Image.Image)
