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

SWAP = """
import os, sys
from vlmkit_retrieval.engines import edge_place, open_engine
from vlmkit_retrieval.engines.built import Built, BuiltSpace, Figures, Setting

moment = sys.argv[2]

def die():
    os.kill(os.getpid(), 9)

class Dying(type(edge_place.Path())):
    renamed = 0

    def rename(self, target):
        if Dying.renamed == {"moving out": 0, "moving in": 1}.get(moment, 9):
            die()
        Dying.renamed += 1
        return super().rename(target)

def remove_a_little(shard):
    if moment == "removing":
        next(edge_place._replaced(shard).rglob("*.json")).unlink()
    die()

engine = open_engine(sys.argv[1])
figures = Figures(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, None, 1)
with engine.copied() as (work, shard):
    if moment == "copied":
        die()
    Built("now", {"v": BuiltSpace("hnsw", Setting(64), 2400, 10, 20, figures, figures)}).save(shard)
    if moment in ("opened", "removing"):
        edge_place.remove_old = remove_a_little
    if moment == "moved":
        engine._load = die
    engine._path = Dying(engine._path)
    engine.replace_by(Dying(shard))
"""


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
    dying = python(SWAP, place, moment)
    _, errors = dying.communicate(timeout=60)
    assert dying.returncode == -signal.SIGKILL, errors
    with open_engine(place) as engine:
        assert (engine.approximate, engine.count(), len(engine.ids())) == (new, 2400, 2400)
        engine.upsert([Point("more", {})])
    assert sorted(path.name for path in place.parent.iterdir()) == ["engine", "engine.lock"]


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

    def killed(asked):
        jobs.append(asked.read_text())
        running = start(asked)
        if '"build"' in jobs[-1]:
            running.kill()
        return running

    monkeypatch.setattr(process, "_start", killed)
    with pytest.raises(RetrievalError, match="the process that was to build ended with -9"):
        optimize(engine, Mode(), ["v"], Demands(queries=20))
    assert [job.split('"')[3] for job in jobs] == ["draw", "exact", "build"]
    engine.upsert([Point("more", {})])
    assert (engine.approximate, engine.count()) == (False, 2401)
    assert sorted(path.name for path in place.parent.iterdir()) == ["engine", "engine.lock"]


def test_what_cannot_be_opened_is_not_swapped_in(engine, place):
    with engine.copied() as (_, shard):
        (shard / "edge_config.json").write_text("{}[")
        with pytest.raises(RetrievalError, match=r"edge_config\.json is damaged"):
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
