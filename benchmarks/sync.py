"""What a sync costs when nothing changed, and when little did: 10,000 small pictures with captions.

    python benchmarks/sync.py

One run after the other on the same index; writes benchmarks/results/sync.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlmkit.encoders.vit import ViT
from vlmkit_retrieval import Bm25Terms, Index, SyncReport

RESULTS = Path(__file__).parent / "results" / "sync.md"
FILES, FOLDERS, SIDE = 10_000, 100, 24
WORDS = ("red", "green", "blue", "round", "square", "thin", "large", "small", "old", "new", "bright")
PAGE = """# Sync

`python benchmarks/sync.py`: {files:,} PNG files of {side} x {side} pixels in {folders} folders, every
second one with a caption in a file beside it; a small ViT (4 patches an edge, width 64, 2 blocks), one
thread; the embedded engine. The runs follow each other on one index. CPU time counts: the machine is
shared with other work.

| run | wall | CPU | encoded by the ViT | report |
| --- | --- | --- | --- | --- |
{rows}

A run in which nothing changed takes {scan:.0f} us of CPU a file: every name, size and time is looked at, no
file is read.
"""


def main() -> None:
    """Run all steps and write the page."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        fill(folder)
        torch.manual_seed(0)
        vit = ViT(SIDE, SIDE // 4, 64, depth=2, heads=2, embed_dim=64).eval()
        steps: list[tuple[str, Callable[[], None], list[object]]] = [
            ("first", lambda: None, [vit]),
            ("again, nothing changed", lambda: None, [vit]),
            ("one folder of 100 renamed", lambda: rename(folder / "007", folder / "seven"), [vit]),
            ("100 files touched", lambda: touch(folder / "008"), [vit]),
            ("100 files added", lambda: fill_one(folder / "new", 100, 1), [vit]),
            ("BM25 added", lambda: None, [Bm25Terms()]),
            ("again, both", lambda: None, [vit, Bm25Terms()]),
        ]
        for name, change, encoders in steps:
            change()
            rows.append((name, *measured(Path(place) / "index", folder, encoders)))
            print(*rows[-1])
    lines = [
        f"| {name} | {wall:.1f} s | {cpu:.1f} s | {report.embedded:,} | "
        f"{report.added:,} added, {report.changed:,} changed, {report.removed:,} removed, "
        f"{report.unchanged:,} unchanged |"
        for name, wall, cpu, report in rows
    ]
    scan = 1e6 * rows[1][2] / FILES
    page = PAGE.format(files=FILES, side=SIDE, folders=FOLDERS, rows="\n".join(lines), scan=scan)
    RESULTS.write_text(page, encoding="utf-8")


def measured(index: Path, folder: Path, encoders: list[object]) -> tuple[float, float, SyncReport]:
    """Wall and CPU seconds from opening the index to closing it."""
    wall, cpu = time.perf_counter(), time.process_time()
    with Index.create_or_open(index) as opened:
        report = opened.sync([folder], encoders)
    return time.perf_counter() - wall, time.process_time() - cpu, report


def fill(folder: Path) -> None:
    """All folders."""
    for n in range(FOLDERS):
        fill_one(folder / f"{n:03}", FILES // FOLDERS, 1000 + n)


def fill_one(folder: Path, count: int, seed: int) -> None:
    """A folder of noise, every second picture with a caption."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    for n in range(count):
        pixels = numbers.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:04}.png")
        if n % 2:
            (folder / f"{n:04}.txt").write_text(" ".join(numbers.choice(WORDS, 6)))


def rename(old: Path, new: Path) -> None:
    """Give a folder another name."""
    old.rename(new)


def touch(folder: Path) -> None:
    """Give files another time."""
    for file in folder.glob("*.png"):
        os.utime(file, ns=(1, 1))


if __name__ == "__main__":
    main()
