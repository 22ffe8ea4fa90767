"""One `vlmkit train` in a process of its own: its memory is measured, and nothing it does ends the sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vlmkit.checkpoint import MANIFEST, read_run, write_json
from vlmkit.errors import VlmkitError
from vlmkit.sweep.grid import Job, Place
from vlmkit.sweep.values import as_text

LAUNCHER = Path(__file__).with_name("launcher.py")
# `failed` is by its own error, `killed` by a signal: memory that ran out, say.
Status = Literal["finished", "failed", "killed", "interrupted"]
# Ended without a result, and not because it was asked to.
LOST: tuple[Status, ...] = ("failed", "killed")
# Whether runs are told to share their work (`vlmkit train --share`).
SHARE = True
# What a process that was asked to stop ends with: by its own handler, or outside the steps by the signal.
STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Record:
    """How the processes of a job have ended.

    Attributes:
        status: Of the last one.
        error: The last line that it had to say, where it failed.
        peak_bytes: Largest resident memory of any of them.
        seconds: Wall time of all of them together.
        processes: How many there were.
    """

    status: Status
    error: str
    peak_bytes: int
    seconds: float
    processes: int


def read_record(place: Place, job: Job) -> Record | None:
    """The record of a job; None where no process of it was waited for."""
    path = place.record(job)
    return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def is_finished(place: Place, job: Job) -> bool:
    """Whether a job's run is trained and evaluated."""
    run = place.run(job)
    if not (run / MANIFEST).exists():
        return False
    manifest = read_run(run)
    return bool(manifest["finished"]) and (job.recipe.evaluate is None or manifest["report"] is not None)


def command(place: Place, job: Job, recipe: str) -> list[str]:
    """The command line of a job."""
    share = ["--share", str(place.shared)] if SHARE else []
    output = f"output={as_text(str(place.run(job)))}"
    return [sys.executable, "-m", "vlmkit", "train", recipe, *job.overrides, output, "--resume", *share]


class TrainProcess:
    """A running job.

    Args:
        place: Where the sweep writes.
        job: What to train.
        recipe: The recipe's file or name.
        threads: Of the process; None leaves that to it.
        lock: A file descriptor that the process keeps open, see `vlmkit.sweep.lock`.
    """

    def __init__(self, place: Place, job: Job, recipe: str, threads: int | None, lock: int) -> None:
        self.place = place
        self.job = job
        self.log = place.log(job)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._said = self.log.stat().st_size if self.log.exists() else 0
        self._began = time.monotonic()
        self._asked = False
        self._outcome = place.record(job).with_suffix(".outcome")
        self._outcome.parent.mkdir(parents=True, exist_ok=True)
        self._outcome.unlink(missing_ok=True)
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the sweep alone, which asks each process to stop once.
            self._process = subprocess.Popen(
                [sys.executable, "-IS", LAUNCHER, self._outcome, *command(place, job, recipe)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                pass_fds=[lock],
            )
        started = {"started": job.name, "kind": job.kind, "pid": self._process.pid, "time": time.time()}
        with (place.root / "started.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(started) + "\n")

    def ask_to_stop(self) -> None:
        """It writes a checkpoint and ends; outside its steps it ends at once, where nothing is lost.

        It is asked once: a process that is asked again does not finish its step.
        """
        if not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now, with the processes that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def poll(self) -> Record | None:
        """Its record, which is written down, once it has ended."""
        code, peak_bytes = self._process.poll(), 0
        if code is None:
            return None
        if self._outcome.exists():
            outcome = json.loads(self._outcome.read_text(encoding="utf-8"))
            code, peak_bytes = outcome["code"], outcome["peak_bytes"]
        elif code >= 0:
            raise VlmkitError(f"{self.job.name} could not be started; its log {self.log} says why")
        before = read_record(self.place, self.job)
        record = self._record(code, peak_bytes, before or Record("interrupted", "", 0, 0.0, 0))
        write_json(self.place.record(self.job), asdict(record))
        return record

    def _record(self, code: int, peak_bytes: int, before: Record) -> Record:
        """This process added to those before it."""
        ended = _status(code)
        return Record(
            status=ended,
            error=self._last_line(code) if ended in LOST else "",
            peak_bytes=max(peak_bytes, before.peak_bytes),
            seconds=time.monotonic() - self._began + before.seconds,
            processes=1 + before.processes,
        )

    def _last_line(self, code: int) -> str:
        """What a user has to know: vlmkit's own message, else the last line, else the signal."""
        lines = _text(self.log, self._said).splitlines()
        own = [line for line in lines if line.startswith("vlmkit: ")]
        if code < 0:
            return f"ended by {signal.Signals(-code).name}; the log is {self.log}"
        return (own or [line.strip() for line in lines if line.strip()] or [f"exit code {code}"])[-1]


def _status(code: int) -> Status:
    if code == 0:
        return "finished"
    if code in STOPPED:
        return "interrupted"
    return "killed" if code < 0 else "failed"


def _text(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace")
