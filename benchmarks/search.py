"""Our embedded engine against Qdrant's local mode, langchain-qdrant and FAISS flat: 100,000 points of 768.

    pip install faiss-cpu langchain-qdrant
    python benchmarks/search.py                # all of it: about an hour of CPU, most of it local mode
    python benchmarks/search.py --points 5000  # quick

Every side fills and asks in processes of its own. Prints ratios of CPU time; without options it also writes
benchmarks/results/search.md, else what --output names. With --work FOLDER, sides that it holds are not run
again. Needs Linux (resident memory is read from /proc).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import search_data
from search_modes import MODES, modes_table
from search_report import heading, sides_table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "search.md"
SIDES = ("vlmkit", "vlmkit, float16", "local mode", "langchain-qdrant", "FAISS flat")
# Where each side stores.
PLACES = {
    "vlmkit": "vlmkit",
    "vlmkit, float16": "vlmkit-half",
    "local mode": "local",
    "langchain-qdrant": "langchain",
    "FAISS flat": "faiss.bin",
}
# Queries by filter; the slow sides answer fewer.
COUNTS = {"": 200, "tenant": 200, "half": 200}
FEW = {"": 30, "tenant": 10, "half": 10}


def run(script, job):
    """A Python process of one thread, as far as libraries can be told; its report."""
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, str(HERE / script), json.dumps(job)]
    done = subprocess.run(
        command, env={**os.environ, **quiet}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(Path(job["output"]).read_text())


def measured(script, folder, points, **job):
    """A report, or the one that is there already."""
    name = named("-".join(value for value in job.values() if isinstance(value, str)))
    output = folder / f"{name}.json"
    if not output.exists():
        job |= {"folder": str(folder), "points": points, "output": str(output)}
        print(f"{name}: {output}", flush=True)
        run(script, job)
    return json.loads(output.read_text())


def named(side):
    """A side as a part of a file's name."""
    return side.replace(", ", "-").replace(" ", "-")


def truths(folder, points):
    """The right answers by filter."""
    file = folder / "truth.json"
    if not file.exists():
        found = {name: search_data.truth(folder, "clustered", points, name or None) for name in COUNTS}
        file.write_text(json.dumps({name: own.tolist() for name, own in found.items()}))
    return json.loads(file.read_text())


def disk(path):
    """Bytes that a file or a folder occupies (the engines' logs are sparse files)."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_blocks * 512 for file in files)


def side_rows(folder, options):
    """Everything measured of each side."""
    right, rows = truths(folder, options.points), {}
    for side in options.sides:
        slow = side in ("local mode", "langchain-qdrant")
        place = folder / PLACES[side]
        if not (folder / f"fill-{named(side)}.json").exists():  # what a side that was stopped has left
            shutil.rmtree(place, ignore_errors=True)
        filled = measured("search_sides.py", folder, options.points, verb="fill", side=side)
        counts = FEW if slow else COUNTS
        asked = measured("search_sides.py", folder, options.points, verb="ask", side=side, counts=counts)
        rows[side] = row(filled, asked, right)
        rows[side]["disk"] = disk(place) * options.points // filled["stored"]
    return rows


def row(filled, asked, right):
    """Rates, times and recall of one side."""
    told = {"stored": filled["stored"], "peak_fill": filled["peak"], "peak_ask": asked["peak"]}
    told["start"], told["reopen"] = asked["start"], asked["reopen"]
    for kind in ("cpu", "wall"):
        told[f"fill_{kind}"] = filled[kind] / filled["stored"]
    for name, own in ((name, asked[name]) for name in COUNTS):
        for kind in ("cpu", "wall"):
            told[f"{name or 'all'}_{kind}"] = statistics.median(time[kind] for time in own["times"])
        told[f"{name or 'all'}_recall"] = recall(own["answers"], right[name])
    return told


def recall(answers, right):
    """Mean share of the ten right points that were found."""
    shares = [len(set(own) & set(true)) / len(true) for own, true in zip(answers, right)]
    return sum(shares) / len(shares)


def mode_rows(folder, options):
    """Kind of data to what `vlmkit index optimize` measured of each mode."""
    points = {"clustered": options.points, "hard": options.hard or options.points}
    return {
        kind: {
            mode: measured("search_modes.py", folder, points[kind], kind=kind, mode=mode)
            for mode in options.modes
        }
        for kind in search_data.KINDS
    }


def main():
    """Run every side and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--hard", type=int, metavar="N", help="points of the hard data, if fewer")
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES)
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--work", type=Path, help="folder to work in, kept")
    parser.add_argument("--output", type=Path, help="table (the committed one, if nothing is set)")
    options = parser.parse_args()
    if options == parser.parse_args([]):
        options.output = RESULTS
    folder = options.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    for kind in search_data.KINDS:
        if not (folder / f"{kind}.f32").exists():
            search_data.write(kind, folder, options.points)
    parts = [heading(options.points), sides_table(side_rows(folder, options))]
    text = "\n".join([*parts, modes_table(mode_rows(folder, options))])
    if options.work is None:
        shutil.rmtree(folder)
    if options.output is not None:
        options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
