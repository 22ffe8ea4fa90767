"""A process that takes in every folder of a corpus and tells what became of it, as JSON.

python hostile_run.py CORPUS [--no-pixel-budget]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from vlmkit_retrieval import images
from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.scan import scan
from vlmkit_retrieval.sources import SOURCES, Reader, as_line, pdf_process, suffixes_of


def resident(pid: int | str, key: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def taken_in(folder: Path, reader: Reader, found) -> dict:
    """Items, texts and lines of one folder; pictures are decoded and dropped."""
    items, texts = 0, []
    for file in found.files.values():
        for item in reader.read(file):
            try:
                if item.image is not None:
                    assert item.image().mode == "RGB"
                items += 1
                texts.append((item.text or "")[:200])
            except FileError as error:
                reader.refuse(item.id, str(error))
    refused = [as_line(bad.path, bad.reason) for bad in (*found.unreadable, *reader.refused)]
    return {"items": items, "texts": texts[:3], "refused": refused}


def child(reader: Reader, refused: list[str]) -> int:
    """The most that PDFium's process has had: all that it may have, if it did not live to be asked."""
    process = reader._sources[".pdf"]._process._process
    if any("crashed PDFium" in line for line in refused):
        return pdf_process.MEMORY
    return resident(process.pid, "VmHWM") if process is not None else 0


def main(corpus: Path) -> None:
    suffixes = suffixes_of(list(SOURCES))
    images.decode_image((corpus / "one-pixel" / "a.png").read_bytes())
    baseline, told = resident("self", "VmRSS"), {}
    for folder in sorted(corpus.iterdir()):
        Path("/proc/self/clear_refs").write_text("5")  # the highest level starts anew
        found = scan([folder], suffixes)
        with Reader(found.files, list(SOURCES)) as reader:
            told[folder.name] = taken_in(folder, reader, found)
            peak = resident("self", "VmHWM") + child(reader, told[folder.name]["refused"])
        told[folder.name]["mebibytes"] = (peak - baseline) // 1024**2
    print(json.dumps(told))


if __name__ == "__main__":
    if "--no-pixel-budget" in sys.argv:
        images.MAX_PIXELS = 10**12
        Image.MAX_IMAGE_PIXELS = None
    main(Path(sys.argv[1]))
