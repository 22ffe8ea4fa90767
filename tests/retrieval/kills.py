"""Kill a sync at random moments: `kills.py FOLDER ROUNDS SEED BATCH` prints a line a round, and says whether
the next run ended with the same index as one that nobody disturbed.

One process imports everything and opens no index; each run is a fork of it, so that a round costs no start.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from mixing import MixingImages, mixing
from PIL import Image

from vlmkit_retrieval import Bm25Terms
from vlmkit_retrieval.digest import digest
from vlmkit_retrieval.index import Index
from vlmkit_retrieval.sync import SyncOptions


class FailingImages(MixingImages):
    """Makes NaN of a few images."""

    def embed_images(self, images):
        rows = super().embed_images(images)
        rows[[image.getpixel((0, 0))[2] % 9 == 4 for image in images]] = np.nan
        return rows


def fill(folder: Path) -> None:
    """Images, two of the same content, with captions, and a broken file of them; texts of several chunks."""
    for n in range(44):
        place = folder / ("a" if n % 2 else "b") / f"{n:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (5 * n % 250 if n != 7 else 15, 9, 200 - n if n != 7 else 197)).save(place)
        if n % 3 == 0:
            place.with_suffix(".caption").write_text(f"a picture, number {n}")
    (folder / "b" / "captions.json").write_text("{")
    for name in ("one", "two"):
        text = "\n\n".join(f"# Part {n} of {name}\n\nSome words about {name} and {n}." for n in range(40))
        (folder / f"{name}.md").write_text(text)


def edit(folder: Path) -> None:
    """Add, change, rename and remove."""
    Image.new("RGB", (4, 4), (1, 2, 3)).save(folder / "a" / "010.png")
    Image.new("RGB", (5, 4), (7, 7, 7)).save(folder / "b" / "12.png")
    (folder / "b" / "15.caption").unlink(missing_ok=True)
    (folder / "b" / "captions.json").write_text('{"12.png": "now a caption"}')
    (folder / "a" / "03.caption").write_text("another caption")
    (folder / "a" / "05.png").unlink()
    (folder / "b" / "20.png").rename(folder / "a" / "20.png")
    (folder / "one.md").write_text((folder / "one.md").read_text().replace("Part 7", "Part seven", 1))


def sync(index: Path, folder: Path, batch: int) -> str:
    options = SyncOptions(kinds=["images", "text"], batch=batch)
    with Index.create_or_open(index) as opened:
        report = opened.sync([folder], [FailingImages("images"), *mixing()[1:], Bm25Terms()], options=options)
        assert any("NaN" in bad.reason for bad in report.unreadable)
        return digest(opened.engine)


def in_child(work, kill_after: float | None = None) -> str:
    """What `work` returns in a forked process, or nothing where that was killed before its end."""
    ends, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        try:
            os.write(writes, work().encode())
        except BaseException:
            traceback.print_exc()  # the round differs then; this says why
        finally:
            os._exit(0)
    os.close(writes)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(ends) as pipe:
        return pipe.read()


def put(source: Path, folder: Path) -> None:
    """Make the synced folder a copy of another one, times of files included."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


def main(place: Path, rounds: int, seed: int, batch: int) -> int:
    chance = random.Random(seed)
    files, index = place / "files", place / "i"
    fill(place / "before")
    shutil.copytree(place / "before", place / "after")
    edit(place / "after")
    expected = {}
    for state in ("after", "before"):
        put(place / state, files)
        started = time.perf_counter()
        expected[state] = in_child(lambda: sync(index, files, batch))
        length = time.perf_counter() - started
        shutil.rmtree(index)
    for number in range(rounds):
        # In batches an item that comes later has other company, so there the first sync is what counts.
        state = "after" if batch == 1 and number % 2 else "before"
        put(place / "before", files)
        if state == "after":
            in_child(lambda: sync(index, files, batch))
            put(place / "after", files)
        moment, started = chance.uniform(0, length), time.perf_counter()
        killed = in_child(lambda: sync(index, files, batch), moment) == ""
        if not killed:  # on a machine that became faster, later moments would all be too late
            length = min(length, time.perf_counter() - started)
        found = in_child(lambda: sync(index, files, batch))
        words = (state, f"{moment:.3f}", "killed" if killed else "done")
        print(number, *words, "same" if found and found == expected[state] else "DIFFERENT", flush=True)
        shutil.rmtree(index)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
