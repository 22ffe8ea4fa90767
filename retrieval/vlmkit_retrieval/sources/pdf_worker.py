"""The program that opens PDF files, in a process of its own. It imports nothing of this package.

PDFium is not thread safe, and a hostile file may crash it, fill the memory or never end: here that costs
one file.
Requests and answers are a line of JSON, followed by as many bytes as its `bytes` says:

    {"op": "open", "bytes": n} file   ->  {"pages": n, "outline": [[title, level, page from 0 on], ...]}
    {"op": "page", "page": 0}         ->  {"width": points, "height": points, "text": ...}
    {"op": "draw", "page": 0, "scale": pixels a point}
                                      ->  {"width": w, "height": h, "stride": s, "bytes": n} rows of RGB
    whatever cannot be done           ->  {"error": reason}
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any, BinaryIO

import pypdfium2
from pypdfium2 import PdfDocument, PdfiumError

MAX_OUTLINE = 20_000
PASSWORD = 4  # FPDF_ERR_PASSWORD
Answer = tuple[dict[str, Any], Any]


def limit_memory(size: int) -> None:
    """Let this process have no more than `size` bytes; Windows has no such limit."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def open_document(data: bytes) -> tuple[PdfDocument, Answer]:
    """A document, and what there is to say about it."""
    try:
        document = PdfDocument(data)
    except PdfiumError as error:
        locked = error.err_code == PASSWORD
        raise ValueError("it needs a password" if locked else "damaged, or no PDF") from None
    return document, ({"pages": len(document), "outline": outline(document)}, b"")


def outline(document: PdfDocument) -> list[tuple[str, int, int]]:
    """Title, level from 0 on and page from 0 on of the entries that lead to a page."""
    found = []
    for entry in itertools.islice(document.get_toc(), MAX_OUTLINE):
        target = entry.get_dest()
        page = target.get_index() if target else None
        if page is not None:
            found.append((entry.get_title()[:500], entry.level, page))
    return found


def describe(document: PdfDocument, number: int) -> Answer:
    """Size and text of a page."""
    page = document[number]
    try:
        width, height = page.get_size()
        text = page.get_textpage().get_text_bounded()
        return {"width": width, "height": height, "text": text}, b""
    finally:
        page.close()


def draw(document: PdfDocument, number: int, scale: float) -> Answer:
    """Pixels of a page on white; forms and scripts are not run."""
    page = document[number]
    try:
        bitmap = page.render(scale=scale, rev_byteorder=True, may_draw_forms=False)
        if bitmap.format != pypdfium2.raw.FPDFBitmap_BGR:  # the order of its bytes is turned: RGB
            raise ValueError(f"drawn in format {bitmap.format}")
        pixels = memoryview(bitmap.buffer).cast("B")
        size = {"width": bitmap.width, "height": bitmap.height, "stride": bitmap.stride}
        return {**size, "bytes": len(pixels)}, pixels
    finally:
        page.close()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side is gone."""
    document: PdfDocument | None = None
    for line in requests:
        request = json.loads(line)
        # An error here ends the process: what is left of the file must not be taken for requests.
        file = requests.read(request.get("bytes", 0))
        answer: dict[str, Any] = {}
        body: Any = b""
        try:
            if request["op"] == "open":
                document = None  # before another one takes memory
                document, (answer, body) = open_document(file)
            elif document is not None:
                answer, body = look(document, request)
        except (PdfiumError, ValueError, MemoryError) as error:
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()


def look(document: PdfDocument, request: dict[str, Any]) -> Answer:
    """What is asked about a page."""
    if request["op"] == "draw":
        return draw(document, request["page"], request["scale"])
    return describe(document, request["page"])


if __name__ == "__main__":
    limit_memory(int(sys.argv[1]))
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may write between the answers
    serve(sys.stdin.buffer, channel)
