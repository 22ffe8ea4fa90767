"""The command with real training: interrupted, gone on with, extended by a value that fails."""

import csv
import json
import os
import signal
import threading
import time

import pytest

from vlmkit import VLM
from vlmkit.cli import main
from vlmkit.sweep.grid import Place, make_grid
from vlmkit.sweep.process import read_record
from vlmkit.sweep.request import Request
from vlmkit.train.metrics import read_metrics

NAME, FAILS = "pool-2_seed-3", "pool-0_seed-3"


@pytest.fixture
def vlmkit(capfd):
    """A function: run a command: (exit code, stdout, stderr)."""

    def run(*argv):
        before = dict(os.environ)
        code = main([str(a) for a in argv])
        os.environ.clear()
        os.environ.update(before)
        return code, *capfd.readouterr()

    return run


def interrupt_at_a_step(metrics):
    """Send Ctrl-C to this process when the last stage has begun."""

    def wait():
        while not metrics.exists() or '"last"' not in metrics.read_text():
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_a_sweep_goes_on_where_it_was_and_says_what_failed(
    vlmkit, recipe_file, started, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "s"
    run = folder / "runs" / NAME
    interrupt_at_a_step(run / "metrics.jsonl")
    command = ["sweep", recipe_file, "--output", folder, "--vary"]
    code, out, err = vlmkit(*command, "model.connector.pool=2")
    assert code == 130 and "0 of 1 runs" in err and "the same command goes on" in err
    steps = len(read_metrics(run / "metrics.jsonl")) - 1
    assert 1 <= steps < 80 and (run / f"checkpoints/last-step-{steps:06d}").is_dir()
    first = (run / "checkpoints/first-step-000001/trained.safetensors").stat().st_mtime_ns

    code, out, err = vlmkit(*command, "model.connector.pool=2,0", "--jobs", 2)
    assert code == 1
    assert started(folder) == [NAME, NAME, FAILS]
    assert (run / "checkpoints/first-step-000001/trained.safetensors").stat().st_mtime_ns == first
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, *range(1, 81)]
    assert "mlp depth=1 pool=0" in out and f"{FAILS}  failed vlmkit: mlp connector" in err

    job = make_grid(Request(str(recipe_file), (), {"model.connector.pool": [2]})).runs[0][0]
    record = read_record(Place(folder), job)
    assert (record.status, record.processes) == ("finished", 2) and record.peak_bytes > 200e6
    compare(next(csv.DictReader((folder / "table.csv").open())), run, rows)
    assert "found pool=0; give 1 or more" in (folder / "table.md").read_text()


def compare(row, run, rows):
    """The numbers of the table with what the run wrote, and with its model."""
    report = json.loads((run / "report.json").read_text())
    model = VLM.from_pretrained(run)
    assert float(row["exact match"]) == report["exact_match"]["all"]
    assert float(row["exact match, yes/no"]) == report["exact_match"]["yes/no"]
    assert float(row["blank image"]) == report["blind"]["all"]
    assert float(row["image tokens"]) == model.count_tokens((64, 64)) == 4
    assert int(row["connector parameters"]) == sum(p.numel() for p in model.connector.parameters())
    last = [r for r in rows if r["stage"] == "last"]
    speed = sum(r["images"] for r in last) / sum(r["seconds"] for r in last)
    assert float(row["images/s"]) == pytest.approx(speed)
    assert float(row["training s"]) == pytest.approx(sum(r["seconds"] for r in rows))
    assert row["status"] == "finished"


def test_a_dry_run_checks_and_writes_nothing(vlmkit, recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vary = ["--vary", "model.connector={type: mlp, pool: 4},{type: mlp}", "--seeds", 2]
    code, out, _ = vlmkit("sweep", recipe_file, *vary, "--dry-run")
    assert code == 0 and not list(tmp_path.iterdir())
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["pool=4", "pool=4", "mlp", "mlp"]
    code, out, err = vlmkit("sweep", recipe_file, "--vary", "model.connector.type=mlp,mpl", "--dry-run")
    assert code == 2 and out == "" and 'model.connector.type="mpl"' in err and "did you mean 'mlp'" in err


def test_wrong_use_is_refused(vlmkit, recipe_file, tmp_path):
    for words, says in [
        (["--jobs", "0"], "--jobs 0"),
        (["--vary", "seed=1,2"], "--seeds"),
        (["--vary", "pool"], "KEY=V1,V2"),
        (["--tune", "stages.last.steps=1,2"], "--tune-set evaluate.data.split=val"),
    ]:
        code, out, err = vlmkit("sweep", recipe_file, "--output", tmp_path / "s", *words)
        assert code == 2 and says in err and out == ""
        assert not (tmp_path / "s").exists()
