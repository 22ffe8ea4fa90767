"""Jobs, so many at once; a signal asks all of them to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from vlmkit.sweep.grid import Job, Place
from vlmkit.sweep.process import TrainProcess, is_finished

POLL_SECONDS = 0.1


Ended = Callable[[Job, int, float], None]


@dataclass
class Pool:
    """Runs jobs.

    Attributes:
        place: Where the sweep writes.
        recipe: The recipe's file or name.
        at_once: How many processes there are at a time.
        lock: See `TrainProcess`.
        ended: Called with a job that has ended, the number of those left, and the seconds these will take.
    """

    place: Place
    recipe: str
    at_once: int
    lock: int
    ended: Ended
    stopped: bool = field(default=False, init=False)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run what is not finished, in order; ends early, with `stopped`, when a signal comes."""
        waiting = deque(job for job in jobs if not is_finished(self.place, job))
        running: list[TrainProcess] = []
        took: list[float] = []
        with self._signals(running):
            while running or (waiting and not self.stopped):
                while waiting and len(running) < self.at_once and not self.stopped:
                    running.append(self._start(waiting.popleft()))
                for process in list(running):
                    if self.stopped:
                        process.ask_to_stop()
                    record = process.poll()
                    if record is not None:
                        running.remove(process)
                        took.append(record.seconds)
                        left = len(running) + len(waiting)
                        ahead = sum(took) / len(took) * left / self.at_once
                        self.ended(process.job, left, ahead)
                time.sleep(POLL_SECONDS)

    def _start(self, job: Job) -> TrainProcess:
        threads = max(1, cores() // self.at_once) if self.at_once > 1 else None
        return TrainProcess(self.place, job, self.recipe, threads, self.lock)

    @contextmanager
    def _signals(self, running: Sequence[TrainProcess]) -> Iterator[None]:
        """The first signal stops the pool, the second ends its processes; whatever happens, none is left."""

        def stop(signum: int, frame: FrameType | None) -> None:
            if self.stopped:
                raise KeyboardInterrupt
            self.stopped = True

        before = {number: signal.signal(number, stop) for number in _numbers()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in running:
                process.kill()


def _numbers() -> list[signal.Signals]:
    """Signals that stop a sweep: a terminal that closes does too, except under nohup."""
    if threading.current_thread() is not threading.main_thread():
        return []
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
