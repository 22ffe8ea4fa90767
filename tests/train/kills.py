"""Trains a recipe in children that are killed by kill -9: after a time, or at the n-th change of a file.

A time is counted from the start, or from when `metrics.jsonl` has a number of rows; or it is when that file
has got its n-th row.

Started by test_kills.py with the recipe's file; reads a job a line on stdin, answers each with a line. Each
job is a fork, so what takes long (importing torch) is done once. Nothing computes in the parent.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import datasets  # noqa: F401
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import torch

from vlmkit.recipe import load_recipe
from vlmkit.train import head
from vlmkit.train.metrics import MetricsFile
from vlmkit.train.module import StageModule
from vlmkit.train.run import train_recipe

# What changes which files are there, and under which names; and what waits for the disk.
POISON = ("json/json1",)
CALLS = ("mkdir", "replace", "rename", "unlink", "rmdir", "fsync")


def die_at(number, count_file):
    """Count calls; kill this process in the place of one of them. The count is left when all is done."""
    seen, own = 0, os.getpid()

    def counting(call):
        def counted(*args, **kwargs):
            nonlocal seen
            # Not what a data-loading worker does: that is another process.
            seen += os.getpid() == own
            if seen == number and os.getpid() == own:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))
    return lambda: Path(count_file).write_text(str(seen))


def hard_to_repeat():
    """Logits in chunks, as of a large batch; and one sample without a finite loss in a row of several."""
    head.CHUNK = 4
    forward = StageModule.forward

    def poisoned(self, batch, by_row=False):
        losses = forward(self, batch, by_row)
        if by_row or batch.segments_BL is None or not any(name in POISON for name in batch.sample_ids):
            return losses
        return {name: (total * math.nan, weight) for name, (total, weight) in losses.items()}

    StageModule.forward = poisoned


def die_after(row, output):
    """Kill this process as soon as `metrics.jsonl` has so many rows."""
    write = MetricsFile.write

    def counting(self, values):
        write(self, values)
        if self.path.name == "metrics.jsonl" and rows(output) == row:
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsFile.write = counting


def child(file, job):
    if "row" in job:
        die_after(job["row"], job["output"])
    done = die_at(job.get("at"), job["count"]) if "count" in job else lambda: None
    with open(job["log"], "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    train_recipe(load_recipe(file, [f"output={job['output']}"]), resume=True)
    done()


def rows(output):
    file = Path(output) / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def run(file, job):
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(file, job)
            code = 0
        except BaseException as error:
            with open(job["log"], "a") as log:
                log.write(repr(error))
        os._exit(code)
    ended, started = 0, None
    while not ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if started is None and rows(job["output"]) >= job.get("rows", 0):
            started = time.perf_counter()
        waited = time.perf_counter() - started if started is not None else 0.0
        if not ended and waited > job.get("after", float("inf")):
            os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0)
        time.sleep(0.001)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - began}


def main(file):
    torch.set_num_threads(1)
    hard_to_repeat()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(file, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
