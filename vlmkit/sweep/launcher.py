"""Runs a command and writes down how it ended and its peak memory. A script of its own, not to be imported.

The system counts as a process's peak what its parent holds when it starts it. A sweep holds torch and a few
models; this holds next to nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType


def main() -> int:
    """`launcher.py OUTCOME COMMAND...`: OUTCOME gets `code` and `peak_bytes` as JSON."""
    outcome, *command = sys.argv[1:]
    # Nobody may ask to stop before there is somebody to pass it on to.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.posix_spawn(command[0], command, os.environ, setsigmask=[])

    def pass_on(signum: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signum)

    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _, status, usage = os.wait4(child, 0)
    # macOS counts in bytes, Linux in KiB.
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    ended = {"code": os.waitstatus_to_exitcode(status), "peak_bytes": peak_bytes}
    Path(outcome).write_text(json.dumps(ended), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
