"""Where a stage writes and whom it tells, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from accelerate import Accelerator

from vlmkit.errors import VlmkitError
from vlmkit.train.metrics import MetricsFile, Reporter


class Interrupted(VlmkitError):
    """Ctrl-C or a termination signal: a checkpoint was written."""

    exit_code = 130


@dataclass
class StageRun:
    """Where a stage writes and whom it tells.

    Attributes:
        run_dir: The run's directory.
        accelerator: Devices and processes.
        metrics: One line a step.
        reporter: Told of each step.
        clip: Largest norm of the gradient.
        workers: Data-loading processes.
    """

    run_dir: Path
    accelerator: Accelerator
    metrics: MetricsFile
    reporter: Reporter
    clip: float = 1.0
    workers: int = 0
    stop: bool = field(default=False, init=False)

    def ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: finish the step that is under way; a second Ctrl-C does not wait."""
        # Launchers of several processes pass a Ctrl-C on that each of them got already.
        if self.stop and self.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        self.stop = True


@contextmanager
def stop_signals(run: StageRun) -> Iterator[None]:
    """Turn Ctrl-C and termination into a request to stop; possible in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = {s: signal.signal(s, run.ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def leave_signals_to_main(worker: int) -> None:
    """For a data-loading process, as it begins: the main process needs it until its checkpoint is written.

    A terminal and a scheduler of jobs signal all processes of a run at once. A worker that is ended by the
    signal would be an error in the main process, in the middle of what that writes. A second termination
    ends a worker: a main process that goes does so with those that do not end by themselves.

    Args:
        worker: Its number, which decides nothing.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_next_time)


def _end_next_time(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)
