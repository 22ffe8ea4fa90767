"""Killed at any moment, the index is the old one or the new one, whole; nobody goes on working for nobody."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.edge_place import move_back, move_in
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.optimize import Demands, Mode, optimize, process
from vlmkit_retrieval.types import Point

DYING = """
import os, sys
from pathlib import Path
from vlmkit_retrieval.engines import edge_place, edge_shard, open_engine
from vlmkit_retrieval.engines.built import Built, BuiltSpace, Figures, Setting

def die(*_, **__):
    os.kill(os.getpid(), 9)

class Dying(type(Path())):
    "Lets so many renames happen, and is killed at the next one."
    left = 99

    def rename(self, target):
        if Dying.left == 0:
            die()
        Dying.left -= 1
        return super().rename(target)

def remove_a_little(folder, ignore_errors):
    for path in list(Path(folder).rglob("*.json"))[:1]:
        path.unlink()
    die()

place, moment, damage = sys.argv[1:]
"""

# Renames of a swap: the old one out, the new one in, and when that was opened, the old one to be removed.
SWAP = (
    DYING
    + """
Dying.left = {"moving out": 0, "moving in": 1, "opened": 2}.get(moment, 99)
engine = open_engine(place)
figures = Figures(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, 1)
with engine.copied() as (work, shard):
    if moment == "copied":
        die()
    Built("now", {"v": BuiltSpace("hnsw", Setting(64), 2400, 10, 20, figures, figures)}).save(shard)
    if moment == "removing":
        edge_place.shutil.rmtree = remove_a_little
    if moment == "moved":
        engine._load = die
    for path in sorted(shard.rglob(damage)) if damage else ():
        path.write_bytes(b"") if path.is_file() else None
    engine._path = Dying(engine._path)
    engine.replace_by(Dying(shard))
"""
)

# Renames of a recovery: the new one, which does not open, out, and the old one in.
RECOVER = (
    DYING
    + """
Dying.left = {"moving out": 0, "moving in": 1}.get(moment, 99)
if moment == "removing":
    edge_place.shutil.rmtree = remove_a_little
edge_shard.Path = Dying
open_engine(place)
"""
)


def killed(python, program, *arguments):
    """Run a program that ends with a kill."""
    dying = python(program, *arguments)
    _, errors = dying.communicate(timeout=60)
    assert dying.returncode == -signal.SIGKILL, errors


def check(place, new):
    """The shard is the new one or the old one, whole, and nothing else is left."""
    with open_engine(place) as engine:
        assert (engine.approximate, engine.count(), len(engine.ids())) == (new, 2400, 2400)
        engine.upsert([Point("more", {})])
    assert sorted(path.name for path in place.parent.iterdir()) == ["engine", "engine.lock"]


@pytest.mark.parametrize(
    ("moment", "new"),
    {
        "copied": False,
        "moving out": False,
        "moving in": False,
        "moved": True,
        "opened": True,
        "removing": True,
    }.items(),
)
def test_a_kill_in_the_swap_leaves_the_old_one_or_the_new_one(place, python, moment, new):
    killed(python, SWAP, place, moment, "")
    check(place, new)


@pytest.mark.parametrize("damage", ["edge_config.json", "segment.json", "status.dat", "*"])
def test_a_killed_swap_of_a_new_one_that_does_not_open_leaves_the_old_one(place, python, damage):
    """Of an empty `status.dat` the library panics, which is no Exception."""
    killed(python, SWAP, place, "moved", damage)
    check(place, new=False)


@pytest.mark.parametrize("moment", ["moving out", "moving in", "removing"])
def test_the_recovery_may_be_killed_too(place, python, moment):
    killed(python, SWAP, place, "moved", "segment.json")
    killed(python, RECOVER, place, moment, "")
    check(place, new=False)


BUILD = """
import subprocess, sys
from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.optimize import Mode, optimize, process

# A job that never ends and, as building does, never lets another thread of the interpreter run.
STUCK = '''
import re, sys
from pathlib import Path
from vlmkit_retrieval.optimize import child
def stuck(job):
    print("stuck", flush=True)
    re.match("(a+)+$", "a" * 60 + "b")
child.VERBS["draw"] = stuck
child.main(Path(sys.argv[1]))
'''

def start(asked):
    command = [sys.executable, "-c", STUCK, str(asked)]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.readline()
    print(running.pid, flush=True)
    return running

process._start = start
optimize(open_engine(sys.argv[1]), Mode(), ["v"])
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_kill_ends_the_child_too(place, python):
    parent = python(BUILD, place)
    child = Path("/proc", parent.stdout.readline().strip())
    assert "stuck" in (child / "cmdline").read_text()
    parent.kill()
    parent.wait()
    waited = time.monotonic() + 60
    while child.exists() and (child / "stat").read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < waited, "it still works"
        time.sleep(0.05)
    with open_engine(place) as engine:
        assert (engine.approximate, engine.count()) == (False, 2400)
    assert sorted(path.name for path in place.parent.iterdir()) == ["engine", "engine.lock"]


def test_a_killed_child_changes_nothing(engine, place, monkeypatch):
    start, jobs = process._start, []

    def ended(asked):
        jobs.append(asked.read_text())
        running = start(asked)
        if '"build"' in jobs[-1]:
            running.kill()
        return running

    monkeypatch.setattr(process, "_start", ended)
    with pytest.raises(RetrievalError, match="the process that was to build ended with -9"):
        optimize(engine, Mode(), ["v"], Demands(queries=20))
    assert [job.split('"')[3] for job in jobs] == ["draw", "exact", "build"]
    engine.upsert([Point("more", {})])
    assert (engine.approximate, engine.count()) == (False, 2401)
    assert sorted(path.name for path in place.parent.iterdir()) == ["engine", "engine.lock"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [("edge_config.json", r"edge_config\.json is damaged"), ("status.dat", "cannot be opened .index out")],
)
def test_what_cannot_be_opened_is_not_swapped_in(engine, place, damage, message):
    with engine.copied() as (_, shard):
        for path in shard.rglob(damage):
            path.write_bytes(b"")
        with pytest.raises(RetrievalError, match=message):
            engine.replace_by(shard)
        assert engine.count() == 2400
    engine.upsert([Point("more", {})])
    assert sorted(path.name for path in place.parent.iterdir()) == ["engine", "engine.lock"]


def test_one_moved_in_can_be_moved_back(tmp_path):
    for name in ("shard", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    move_in(tmp_path / "new", tmp_path / "shard")
    assert (tmp_path / "shard" / "new").exists()
    move_back(tmp_path / "new", tmp_path / "shard")
    assert (tmp_path / "shard" / "shard").exists() and (tmp_path / "new" / "new").exists()
