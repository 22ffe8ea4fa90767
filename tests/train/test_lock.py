"""Two processes never train into one run directory; a lock that is left behind blocks nobody."""

import errno
import os
import platform

import pytest

from vlmkit.errors import UsageError
from vlmkit.train.lock import locked
from vlmkit.train.metrics import Silent
from vlmkit.train.restore import rewind
from vlmkit.train.run import train_recipe

# Another process that takes the lock and dies by kill -9.
HOLDER = """
import os, signal, sys
from pathlib import Path
from vlmkit_retrieval.lock import FileLock
lock = FileLock(Path(sys.argv[1]), "run")
os.write(lock.fileno(), b"elsewhere\\n")
Path(sys.argv[2]).write_text(str(os.getpid()))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Trying(Silent):
    """Starts the same run again after a step of it."""

    def __init__(self, recipe):
        self.recipe = recipe
        self.refusal = None

    def step(self, step, values):
        if self.refusal is None:
            with pytest.raises(UsageError) as raised:
                train_recipe(self.recipe, resume=True)
            self.refusal = str(raised.value)


def test_a_second_run_is_refused_and_told_who_holds_the_directory(tiny_recipe, tmp_path):
    recipe = tiny_recipe(stages=[{"steps": 2}], output=str(tmp_path / "run"))
    trying = Trying(recipe)
    assert train_recipe(recipe, reporter=trying).path.is_dir()
    who = f"process {os.getpid()} on {platform.node()}"
    assert trying.refusal.startswith(f"{tmp_path}/run is in use: {who} trains into it;")
    assert trying.refusal.endswith("wait for it or end it")
    assert train_recipe(recipe, resume=True).path.is_dir(), "the lock is dropped at the end"


def test_nothing_is_rewound_below_a_run_that_trains(tmp_path):
    (tmp_path / "vlmkit.json").write_text("{}")
    with (
        locked(tmp_path, Silent()),
        pytest.raises(UsageError, match="is in use"),
    ):
        rewind(tmp_path, "only-step-2", Silent())


def test_a_lock_of_a_dead_process_is_no_obstacle(tmp_path, python):
    done = python(HOLDER, str(tmp_path / "lock"), str(tmp_path / "pid"))
    assert done.returncode == -9, done.stderr
    left = (tmp_path / "lock").read_text()
    assert left == f"{(tmp_path / 'pid').read_text()}\nelsewhere\n"
    with locked(tmp_path, Silent()):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n{platform.node()}\n"


def test_a_new_run_is_told_of_another_directory(tmp_path):
    with (
        locked(tmp_path, Silent()),
        pytest.raises(UsageError, match="or set output=ANOTHER_DIRECTORY"),
        locked(tmp_path, Silent(), new=True),
    ):
        pass


def test_a_run_that_began_meanwhile_is_not_written_over(tmp_path):
    (tmp_path / "vlmkit.json").write_text("{}")
    with (
        pytest.raises(UsageError, match="another process has begun meanwhile; add --resume"),
        locked(tmp_path, Silent(), new=True),
    ):
        pass
    with locked(tmp_path, Silent()):
        pass


def test_an_error_drops_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, Silent()):
        raise ZeroDivisionError
    with locked(tmp_path, Silent()):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, hear):
    heard = hear()

    def refuse(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("vlmkit_retrieval.lock._lock", refuse)
    with locked(tmp_path, heard):
        assert len(heard.notes) == 1 and "a file system without locks" in heard.notes[0]


def test_a_folder_with_nothing_but_a_lock_is_free(tiny_recipe, tmp_path):
    """What is left of a run that was killed before it began."""
    for name in ("lock", "vlmkit.json.partial"):
        (tmp_path / name).write_text("1\n")
    assert (train_recipe(tiny_recipe(output=str(tmp_path))).path / "model.safetensors").exists()
