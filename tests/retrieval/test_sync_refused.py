"""What cannot be used is a line that names the file, and the index is what the folders give now."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pdfs
import pytest
from mixing import MixingImages, MixingPatches, MixingTexts

from vlmkit_retrieval.digest import digest
from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.search import Bm25Terms
from vlmkit_retrieval.sources.pdf_process import PdfProcess
from vlmkit_retrieval.sync import SyncOptions
from vlmkit_retrieval.types import Terms

KINDS = SyncOptions(kinds=["images", "text"])
ALL = SyncOptions(kinds=["images", "text", "pdf"])
RED = (255, 0, 0)


def lines(report):
    return {(Path(bad.path).name, bad.reason) for bad in report.unreadable}


def names(index, space):
    return sorted(os.path.basename(point.id) for point in index.engine.scroll() if space in point.vectors)


def fresh(tmp_path, folder, encoders, options):
    """The digest of a new index, and what its sync reported."""
    with Index.create_or_open(tmp_path / f"fresh-{len(list(tmp_path.iterdir()))}") as index:
        report = index.sync([folder], encoders, options=options)
        return digest(index.engine), lines(report)


class Failing:
    """Makes of red images, and of texts about red, what no engine stores; of all else what it should."""

    bad = np.nan

    def _spoil(self, contents, rows):
        for content, row in zip(contents, rows, strict=True):
            if content == "red" or getattr(content, "getpixel", lambda _: None)((0, 0)) == RED:
                row[...] = self.bad
        return rows


class FailingImages(Failing, MixingImages):
    def embed_images(self, images):
        return self._spoil(images, super().embed_images(images))


class FailingTexts(Failing, MixingTexts):
    def embed_text(self, texts):
        return self._spoil(texts, super().embed_text(texts))


class FailingPatches(Failing, MixingPatches):
    def embed_patches(self, images):
        return self._spoil(images, super().embed_patches(images))


class FailingTerms(Bm25Terms):
    bad = np.nan

    def embed_documents(self, texts):
        found = zip(texts, super().embed_documents(texts), strict=True)
        return [
            Terms(terms.indices, [self.bad] * len(terms.values)) if text == "red" else terms
            for text, terms in found
        ]


@pytest.fixture
def folder(tmp_path, save_image):
    for name, colour in {"a": "green", "b": "red", "c": "blue", "d": "red", "e": "white"}.items():
        save_image(tmp_path / "files" / f"{name}.png", colour)
        (tmp_path / "files" / f"{name}.caption").write_text(colour)
    (tmp_path / "files" / "notes.md").write_text("red")
    return tmp_path / "files"


GIVES = {np.nan: "has NaN or Inf", np.inf: "has NaN or Inf", 0.0: "is all zeros, it points nowhere"}


@pytest.mark.parametrize("bad", GIVES)
@pytest.mark.parametrize("kind", [FailingImages, FailingPatches, FailingTexts])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_an_encoder_cannot_do_is_named_and_the_rest_is_synced(index, folder, kind, bad, batch):
    failing, terms = kind("f"), Bm25Terms()
    failing.bad = bad
    options = SyncOptions(kinds=["images", "text"], batch=batch)
    report = index.sync([folder], [failing, terms], options=options)
    line = f"what encoder 'f' made of it {GIVES[bad]}; check the encoder"
    told = {(bad.path, bad.reason.replace("'s weights", "")) for bad in report.unreadable}
    texts = {(str(folder / "notes.md"), f"chunk 1: {line}")} if kind is FailingTexts else set()
    assert told == {(str(folder / name), line) for name in ("b.png", "d.png")} | texts
    assert names(index, "f") == ["a.png", "c.png", "e.png"]
    assert len(names(index, "bm25")) == 6, "what other encoders made of it is stored"


def test_terms_without_a_number_are_named_too(index, folder):
    report = index.sync([folder], [MixingImages("images"), FailingTerms()], options=KINDS)
    assert {name for name, _ in lines(report)} == {"b.png", "d.png", "notes.md"}
    assert names(index, "bm25") == ["a.png", "c.png", "e.png"] and len(names(index, "images")) == 5


def test_patches_too_large_for_float16_are_named_too(index, folder):
    failing = FailingPatches("f")
    failing.bad = 1e5
    assert {name for name, _ in lines(index.sync([folder], failing))} == {"b.png", "d.png"}


def test_the_same_index_whatever_happened_before_an_encoder_failed(tmp_path, index, folder, save_image):
    """Files that were fine before, one that was not, and a sync that failed before."""
    encoders = [FailingImages("images"), FailingTexts("text"), FailingPatches("patches"), Bm25Terms()]
    save_image(folder / "a.png", "red", size=(3, 3))
    save_image(folder / "b.png", "white", size=(3, 3))
    (folder / "b.caption").write_text("another")
    index.sync([folder], encoders, options=KINDS)
    save_image(folder / "a.png", "green")
    save_image(folder / "b.png", "red")
    (folder / "b.caption").write_text("red")
    (folder / "c.png").rename(folder / "0.png")
    for _ in range(2):
        report = index.sync([folder], encoders)
        assert (digest(index.engine), lines(report)) == fresh(tmp_path, folder, encoders, KINDS)


def test_the_next_sync_tries_again(tmp_path, index, folder):
    failing = [FailingImages("images"), FailingTexts("text"), FailingPatches("patches")]
    index.sync([folder], failing, options=KINDS)
    failing[0].seen.clear()
    assert len(lines(index.sync([folder], failing))) == 2 + 3 + 2
    assert len(failing[0].seen) == 1, "what could be encoded is not encoded again"
    mended = [MixingImages("images"), MixingTexts("text"), MixingPatches("patches")]
    report = index.sync([folder], mended)
    assert (report.embedded_by, report.unreadable) == ({"images": 1, "text": 1, "patches": 1}, ())
    assert digest(index.engine) == fresh(tmp_path, folder, mended, KINDS)[0]


def pages(index):
    return [point.payload["page"] for point in index.engine.scroll() if "page" in point.payload]


def refuse(monkeypatch, numbers, method):
    """Let PDFium fail at some pages (from 1 on), when they are read or when they are drawn."""
    work = getattr(PdfProcess, method)

    def failing(self, document, number, *more):
        if number + 1 in numbers:
            raise FileError("PDFium fails")
        return work(self, document, number, *more)

    monkeypatch.setattr(PdfProcess, method, failing)


@pytest.mark.parametrize("edited", [True, False])
@pytest.mark.parametrize(("refused", "left"), [([2], [1, 3]), ([1, 2, 3], [])])
@pytest.mark.parametrize("method", ["page", "draw"])
def test_pages_that_cannot_be_used_any_more_are_gone(
    tmp_path, index, folder, monkeypatch, edited, refused, left, method
):
    """Of a file that was edited, and of one that only an encoder that is new reads again."""
    encoders = [MixingTexts("text"), MixingImages("images")]
    (folder / "manual.pdf").write_bytes(pdfs.pdf("one", "two", "three"))
    report = index.sync([folder], encoders if edited else encoders[:1], options=ALL)
    assert pages(index) == [1, 2, 3] and not report.unreadable
    if edited:
        (folder / "manual.pdf").write_bytes(pdfs.pdf("one", "two changed", "three"))
    refuse(monkeypatch, refused, method)
    for removed in (len(refused), 0):
        report = index.sync([folder], encoders)
        assert (pages(index), report.removed) == (left, removed)
        assert lines(report) and all("PDFium fails" in reason for _, reason in lines(report))
        assert (digest(index.engine), lines(report)) == fresh(tmp_path, folder, encoders, ALL)


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_is_lost_while_it_is_read_keeps_its_items(index, folder, monkeypatch, gone):
    """Its disk may be away, or somebody is writing it: nobody knows its pages."""
    encoders, file = [MixingTexts("text"), MixingImages("images")], folder / "manual.pdf"
    file.write_bytes(pdfs.pdf("one", "two", "three"))
    index.sync([folder], encoders, options=ALL)
    file.write_bytes(pdfs.pdf("one", "two", "three", "four"))
    page = PdfProcess.page

    def losing(self, document, number):
        if number == 2:
            self.close()
            file.unlink() if gone else file.write_bytes(b"another")
        return page(self, document, number)

    monkeypatch.setattr(PdfProcess, "page", losing)
    report = index.sync([folder], encoders)
    assert {name for name, _ in lines(report)} == {"manual.pdf"}
    assert pages(index) == [1, 2, 3] and report.removed == 0


# A folder's one file of captions, as it should be and in ways that it should not.
FINE = '{"file_name": "b.png", "text": "bee"}\n{"file_name": "deep/c.png", "text": "sea"}\n'
BROKEN = {
    "not UTF-8": ("captions.json", b"\xff"),
    "no rows at all": ("captions.json", b'{"info": {"year": 2017}}'),
    "a bad row": ("metadata.jsonl", FINE.encode() + b"{\n"),
    "nobody's row": ("metadata.jsonl", FINE.encode() + b'{"file_name": "z.png", "text": "zed"}\n'),
    "no text": ("b.txt", b"\xff"),
}
HISTORIES = {
    "it was fine before": ["mend", "sync", "spoil"],
    "the first image is gone": ["add 0", "sync", "drop 0"],
    "an image came before the first": ["drop a", "sync", "add a"],
    "a folder below was first": ["sync deep"],
    "it broke, was mended and broke": ["sync", "mend", "sync", "spoil"],
    "two images shared it, one is left": ["add b.jpg", "sync", "drop b.jpg"],
    "one image had it, two have it": ["drop b", "add b.jpg", "sync", "add b", "sync", "drop b.jpg"],
}


@pytest.fixture
def album(tmp_path, save_image):
    for name in ("a", "b", "deep/c", "deep/d"):
        save_image(tmp_path / "album" / f"{name}.png", (len(name), ord(name[-1]), 7))
    return tmp_path / "album"


def step(index, album, save_image, broken, words):
    """One word of a history."""
    name, content = broken
    verb, _, what = words.partition(" ")
    path = album / (what if "." in what else f"{what}.png")
    match verb:
        case "sync":
            return index.sync([album / what], [MixingImages("images"), Bm25Terms()])
        case "spoil":
            (album / name).write_bytes(content)
        case "mend":
            (album / name).write_text("{}" if name.endswith(".json") else "bee" if "txt" in name else FINE)
        case "add":
            save_image(path, (8, 8, 8))
        case "drop":
            path.unlink()
    return None


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_of_captions_is_told_whatever_happened_before(
    tmp_path, index, album, save_image, how, history
):
    step(index, album, save_image, BROKEN[how], "spoil")
    for words in HISTORIES[history]:
        step(index, album, save_image, BROKEN[how], words)
    told = fresh(tmp_path, album, [MixingImages("images"), Bm25Terms()], None)
    assert [name for name, _ in told[1]] == [BROKEN[how][0]]
    for _ in range(2):
        report = step(index, album, save_image, BROKEN[how], "sync ")
        assert (digest(index.engine), lines(report)) == told


def test_images_are_not_read_again_while_their_file_of_captions_is_broken(index, album, monkeypatch):
    (album / "captions.json").write_text("{")
    index.sync([album], MixingImages("images"))
    with monkeypatch.context() as unread:
        unread.setattr("vlmkit_retrieval.sources.images.read_file", None)
        report = index.sync([album], MixingImages("images"))
    assert (len(lines(report)), report.unchanged) == (1, 4)


def test_what_broke_and_was_mended_without_a_trace_is_seen(tmp_path, index, album):
    """As by its permissions: size and time are what they were."""
    captions, encoders = album / "captions.json", [MixingImages("images"), Bm25Terms()]
    for content in ('{"b.png": "bee"}', '{"b.png": "bee"]', '{"b.png": "bee"}'):
        captions.write_text(content)
        os.utime(captions, ns=(1, 1))
        report = index.sync([album], encoders)
        assert len(lines(report)) == content.endswith("]")
        assert names(index, "bm25") == ([] if content.endswith("]") else ["b.png"])
        assert (digest(index.engine), lines(report)) == fresh(tmp_path, album, encoders, None)


def test_a_row_of_an_image_that_goes_is_told_and_one_elsewhere_is_not(tmp_path, index, album):
    """Of a sync of a folder below, rows of images above it are nobody's fault."""
    encoders = MixingImages("images")
    (album / "metadata.jsonl").write_text(FINE)
    assert not lines(index.sync([album], encoders))
    (album / "b.png").unlink()
    (album / "deep" / "c.png").unlink()
    for _ in range(2):
        [(name, reason)] = lines(index.sync([album / "deep"], encoders))
        assert name == "metadata.jsonl" and "row 2 names" in reason and "more" not in reason
    report = index.sync([album], encoders)
    assert (digest(index.engine), lines(report)) == fresh(tmp_path, album, encoders, None)
    assert [reason.endswith("(and 1 rows more)") for _, reason in lines(report)] == [True]
