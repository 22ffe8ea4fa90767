"""Talks to the process that opens PDF files: one at a time, with limits of memory and time.

A process and not a lock around PDFium: a file that crashes it, or on which it never ends, costs this file and
not the sync. It is started at the first PDF file and ends with its owner.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any

from vlmkit_retrieval.errors import FileError, MissingPackageError

MEMORY = 640 * 1024**2
SECONDS = 60.0


class PdfCrash(FileError):
    """The process ended, or was ended, at a request."""


class PdfProcess:
    """Opens one document at a time.

    Args:
        memory: Bytes the process may have (not on Windows).
        seconds: A request may take so long.

    Raises:
        MissingPackageError: pypdfium2 is not installed.
    """

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        if importlib.util.find_spec("pypdfium2") is None:
            raise MissingPackageError("pypdfium2")
        self._memory, self._seconds = memory, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._held = ""
        self._lock = Lock()

    def holds(self, sha: str) -> bool:
        """Whether the document with this content is the open one."""
        return self._held == sha

    def open(self, sha: str, data: bytes) -> dict[str, Any]:
        """Open a document and say `pages` and `outline`.

        Raises:
            FileError: It cannot be opened.
        """
        with self._lock:
            self._held = ""
            answer, _ = self._ask({"op": "open", "bytes": len(data)}, data)
            self._held = sha
            return answer

    def page(self, number: int) -> dict[str, Any]:
        """`width` and `height` in points and `text` of a page, from 0 on, of the open document."""
        with self._lock:
            return self._ask({"op": "page", "page": number})[0]

    def draw(self, number: int, scale: float) -> tuple[dict[str, Any], bytes]:
        """`width`, `height` and `stride` of a picture of a page, and its rows; `scale` is pixels a point."""
        with self._lock:
            return self._ask({"op": "draw", "page": number, "scale": scale})

    def close(self) -> None:
        """End the process; the next request starts another one."""
        self._held = ""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, request: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = Timer(self._seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.write(body)
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            pixels = _read(process.stdout, answer.get("bytes", 0))
        except (OSError, ValueError):  # a closed pipe; no line, or half of one
            if timer.is_alive():
                limit = f"{self._memory // 1024**2} MiB of memory, or crashed PDFium"
            else:
                limit = f"{self._seconds:g} seconds"
            self.close()
            raise PdfCrash(f"it took more than {limit}") from None
        finally:
            timer.cancel()
        if "error" in answer:
            raise FileError(answer["error"])
        return answer, pixels

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the folder of the program, with its `text.py`, is no place to import from.
        command = [sys.executable, "-P", str(Path(__file__).with_name("pdf_worker.py")), str(self._memory)]
        paths = os.pathsep.join(path for path in sys.path if path)
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ValueError("the answer ends too early")
    return data
