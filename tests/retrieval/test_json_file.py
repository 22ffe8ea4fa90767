"""Small files that are replaced in one step, whoever writes at the same time and whoever is killed."""

from __future__ import annotations

import json
import os
import signal
from contextlib import nullcontext

import pytest

from vlmkit_retrieval import index as index_module
from vlmkit_retrieval.errors import IndexLockedError
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.json_file import clear_unfinished, write_json
from vlmkit_retrieval.manifest import MANIFEST, Manifest


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_at_once_both_end_and_leave_one_file(tmp_path, monkeypatch):
    """The second one writes while the first one has all but renamed its file."""
    fsync = os.fsync

    def meanwhile(number):
        monkeypatch.setattr(os, "fsync", fsync)
        Manifest("second").save(tmp_path)
        assert Manifest.load(tmp_path).engine == "second"
        fsync(number)

    monkeypatch.setattr(os, "fsync", meanwhile)
    Manifest("first").save(tmp_path)
    assert Manifest.load(tmp_path).engine == "first"
    assert names(tmp_path) == [MANIFEST]


def test_a_file_is_whole_text_that_others_may_read(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / "plain").touch()
    write_json(path, {"ü": 1, "a": [None]})
    assert path.read_text("utf-8") == '{\n  "a": [\n    null\n  ],\n  "ü": 1\n}\n'
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError, match="object"):
        write_json(tmp_path / "a.json", {"a": object()})
    assert names(tmp_path) == ["a.json"] and json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


KILLED = """
import os, sys
from pathlib import Path
from vlmkit_retrieval.index import Index

with Index.open(sys.argv[1]) as index:
    os.fsync = lambda number: os.kill(os.getpid(), 9)
    index.manifest.save(index.path)
"""


def test_a_killed_writer_leaves_nothing_for_ever(tmp_path, python):
    Index.create_or_open(tmp_path / "i").close()
    before = names(tmp_path / "i")
    for _ in range(2):
        writer = python(KILLED, tmp_path / "i")
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == -signal.SIGKILL, errors
        assert len(names(tmp_path / "i")) == len(before) + 1
    Index.open(tmp_path / "i").close()
    assert names(tmp_path / "i") == before


def test_only_unfinished_ones_of_this_file_are_cleared(tmp_path):
    for name in (".a.json.new", ".a.json.01ab.new", ".b.json.01ab.new", "a.json.01ab.new", "a.json"):
        (tmp_path / name).touch()
    clear_unfinished(tmp_path / "a.json")
    assert names(tmp_path) == [".b.json.01ab.new", "a.json", "a.json.01ab.new"]


@pytest.mark.parametrize("closed", [True, False])
def test_a_second_first_sync_does_not_write_over_the_first_ones_manifest(
    tmp_path, monkeypatch, photos, colours, closed
):
    """Both have seen that there is no index; one has made it, and has filled it or still does."""
    first, make = [], index_module.make

    def meanwhile(directory):
        monkeypatch.setattr(index_module, "make", make)
        first.append(Index.create_or_open(directory))
        first[0].sync([photos], colours)
        if closed:
            first[0].close()
        return make(directory)

    monkeypatch.setattr(index_module, "make", meanwhile)
    with nullcontext() if closed else pytest.raises(IndexLockedError):
        Index.create_or_open(tmp_path / "i").close()
    assert list(Manifest.load(tmp_path / "i").encoders) == ["colour"]
    first[0].close()
    with Index.open(tmp_path / "i") as index:
        assert index.sync([photos], colours).unchanged == 3
