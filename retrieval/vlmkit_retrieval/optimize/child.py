"""The program that builds and measures, in a process of its own: the library holds the interpreter meanwhile.

    python -m vlmkit_retrieval.optimize.child JOB.json

A job names a `verb`, the `shard` (a copy that nobody else opens) and where its `answer` goes.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from vlmkit_retrieval.engines.built import Setting
from vlmkit_retrieval.engines.edge_place import sync_files
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.optimize.build import build
from vlmkit_retrieval.optimize.measure import draw, measure_exact, measure_settings
from vlmkit_retrieval.optimize.modes import Mode


def main(path: Path) -> int:
    """Do one job."""
    _end_with_owner()
    job = json.loads(path.read_text("utf-8"))
    try:
        found = VERBS[job["verb"]](job)
    except RetrievalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    answer = Path(job["answer"])
    answer.with_suffix(".new").write_text(json.dumps(found), "utf-8")
    answer.with_suffix(".new").replace(answer)
    return 0


def _draw(job: dict[str, Any]) -> dict[str, Any]:
    return draw(Path(job["shard"]), job["space"], job["queries"], Path(job["file"]))


def _exact(job: dict[str, Any]) -> dict[str, Any]:
    return measure_exact(Path(job["shard"]), job["space"], job["k"], Path(job["file"]))


def _build(job: dict[str, Any]) -> dict[str, Any]:
    if hasattr(os, "nice"):
        os.nice(10)  # those who ask the index come first; what is measured runs as they do
    began = time.process_time()
    build(Path(job["shard"]), {name: Mode.parse(mode) for name, mode in job["modes"].items()})
    took = time.process_time() - began
    sync_files(Path(job["shard"]))
    return {"cpu_seconds": took}


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    settings = [Setting(**own) for own in job["settings"]]
    found = measure_settings(Path(job["shard"]), job["space"], job["k"], Path(job["file"]), settings)
    return {"figures": found}


def _end_with_owner() -> None:
    """Let the system end this process when its standard input ends: no thread of ours would get to run."""
    if sys.platform == "win32":
        return  # it ends when its job is done; its folder is cleared away by who opens the index next
    import fcntl

    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)  # SIGIO ends a process
    if select.select([0], [], [], 0)[0]:  # it had ended before
        sys.exit(1)


VERBS = {"draw": _draw, "exact": _exact, "build": _build, "measure": _measure}

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
