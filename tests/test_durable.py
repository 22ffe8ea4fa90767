"""What a power cut leaves: where a folder cannot be synced, the file still is."""

import errno
import os

import pytest

from vlmkit import durable
from vlmkit.checkpoint import write_text
from vlmkit.train.metrics import MetricsFile, read_metrics


def failing(code, monkeypatch):
    """Let `fsync` fail on folders with this error."""
    synced, fsync = [], os.fsync

    def on_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        synced.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", on_folders)
    return synced


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs to know a descriptor's path")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch, code):
    synced = failing(code, monkeypatch)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new" and len(synced) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs to know a descriptor's path")
def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    failing(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        durable.sync(tmp_path)


def test_going_back_in_a_file_of_metrics_reaches_the_disk_first(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", synced.append)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        file.write({"stage": "a", "step": step})
    file.rewind("a", 1)
    assert read_metrics(file.path) == [{"stage": "a", "step": 1}]
    assert synced == [tmp_path / "metrics.jsonl.partial", tmp_path]
