"""Runs one job of `child.py` in a process of its own, which ends when this one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmkit_retrieval.errors import RetrievalError

_MODULE = "vlmkit_retrieval.optimize.child"


def run_job(job: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """What the job found, as JSON values.

    Args:
        job: `verb` and its arguments, as JSON values.
        work: A folder for the files of both.

    Raises:
        RetrievalError: It failed, or was killed.
    """
    asked, answer = work / "job.json", work / "answer.json"
    answer.unlink(missing_ok=True)
    asked.write_text(json.dumps({**job, "answer": str(answer)}), "utf-8")
    process = _start(asked)
    try:
        assert process.stderr is not None
        said = process.stderr.read()  # not `communicate`: it would close the pipe that keeps the child alive
        code = process.wait()
    finally:
        process.kill()
        process.communicate()
    if code or not answer.exists():
        last = (said.strip().splitlines() or ["it was killed"])[-1]
        raise RetrievalError(f"the process that was to {job['verb']} ended with {code}: {last}")
    found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    return found


def _start(asked: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, str(asked)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.PIPE,  # its end tells the child that we are gone
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
