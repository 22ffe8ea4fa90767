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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any

from vlmkit_retrieval.errors import FileError, MissingPackageError

MEMORY = 640 * 1024**2
SECONDS = 60.0
# What is believed of the process, should a file have taken it over: a line of texts, and a picture.
MAX_ANSWER = 128 * 1024**2
MAX_BODY = 256 * 1024**2


class PdfCrash(FileError):
    """The process ended, or was ended, at a request."""


@dataclass(frozen=True)
class Document:
    """A file that can be opened again: another one may come between, or the process may have to be ended.

    Attributes:
        sha: Hash of its content.
        load: Reads the content; FileError where it is another one now.
    """

    sha: str
    load: Callable[[], bytes]


class PdfProcess:
    """Has one document open at a time; may be used from several threads, which wait for each other.

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

    def open(self, document: Document) -> dict[str, Any]:
        """`pages` and `outline` of a document.

        Raises:
            FileError: It cannot be opened.
        """
        with self._lock:
            return self._open(document)

    def page(self, document: Document, number: int) -> dict[str, Any]:
        """`width` and `height` in points and `text` of a page, numbered from 0 on."""
        return self._of(document, {"op": "page", "page": number})[0]

    def draw(self, document: Document, number: int, scale: float) -> tuple[dict[str, Any], bytes]:
        """`width`, `height` and `stride` of a picture of a page, and its rows; `scale` is pixels a point."""
        return self._of(document, {"op": "draw", "page": number, "scale": scale})

    def close(self) -> None:
        """End the process; the next request starts another one."""
        with self._lock:
            self._end()

    def _of(self, document: Document, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            if self._held != document.sha:
                self._open(document)
            return self._ask(request)

    def _open(self, document: Document) -> dict[str, Any]:
        self._held = ""
        data = document.load()
        answer, _ = self._ask({"op": "open", "bytes": len(data)}, data)
        self._held = document.sha
        return answer

    def _end(self) -> None:
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
            answer: dict[str, Any] = json.loads(process.stdout.readline(MAX_ANSWER))
            pixels = _read(process.stdout, answer.get("bytes", 0))
        except (OSError, ValueError):  # a closed pipe; no line, or half of one
            if timer.is_alive():
                limit = f"{self._memory // 1024**2} MiB of memory, or crashed PDFium"
            else:
                limit = f"{self._seconds:g} seconds"
            self._end()
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
    data = stream.read(min(size, MAX_BODY))
    if len(data) < size:
        raise ValueError("the answer ends too early, or is too long")
    return data
