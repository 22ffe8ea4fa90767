"""Memory of an opened data set, and the time of a sample, at 10 thousand, 100 thousand and a million rows.

    python benchmarks/data_memory.py [FOLDER]

Writes the data sets to FOLDER (by default a temporary one; the million needs 7 GB), opens each in a process
of its own, reads 2,000 samples in random order, and writes benchmarks/results/data_memory.md.
"""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "data_memory.md"
SIZES = (10_000, 100_000, 1_000_000)
READS, SHARD, GROUP = 2_000, 10_000, 10_000
# A PNG of one pixel: only its place matters here.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
FORMATS = (
    "llava_json JSONL",
    "llava_json JSON",
    "table CSV",
    "table Parquet",
    "hf_dataset",
    "webdataset",
    "mixture",
)
# They keep something on disk, by which they open faster the next time.
CACHED = ("table Parquet", "hf_dataset", "webdataset")
EAGER = "JSONL, all samples in a list"


WHAT = (
    "`python benchmarks/data_memory.py`: a process opens a data set of rows with one image (700 bytes of "
    f"text each) and reads {READS:,} samples in random order. MB are what the process "
    "holds more than before it opened the data. Pages of mapped files are taken back by the system when it "
    "needs room."
)
HEAD = "| format | samples | MB | MB of mapped files | CPU seconds to open: first / again | CPU µs a sample |"
NOTE = (
    "JSON and CSV are read and checked as a whole each time they are opened: that is the time. `mixture` is "
    "the JSONL and the tars together. The last kind is how it would be without an index."
)


def row(number):
    """A row of LLaVA's form, some 700 bytes."""
    asked = "<image>\nwhat is to be seen in this picture? " + "please say it in detail. " * 6
    answer = f"picture {number} shows a quiet street. " * 8
    talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": f"{number:09d}", "image": f"coco/{number:012d}.jpg", "conversations": talk}


def write_text(folder, count):
    """The rows as JSON lines, as a JSON list and as CSV."""
    with (
        (folder / "rows.jsonl").open("w") as lines,
        (folder / "rows.json").open("w") as whole,
        (folder / "rows.csv").open("w") as table,
    ):
        table.write("image,question,answer\n")
        for number in range(count):
            text, one = json.dumps(row(number)), row(number)
            lines.write(text + "\n")
            whole.write(("," if number else "[") + text)
            asked, answer = (turn["value"] for turn in one["conversations"])
            table.write(f'{one["image"]},"{asked}","{answer}"\n')
        whole.write("]")


def write_parquet(folder, count):
    """The rows in row groups, as question and answer and as conversation."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start in range(0, count, GROUP):
        rows = [row(number) for number in range(start, min(start + GROUP, count))]
        for one in rows:
            one["question"], one["answer"] = (turn["value"] for turn in one["conversations"])
        data = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", data.schema)
        writer.write_table(data)
    writer.close()


def write_tars(folder, count):
    """The rows as shards with an image each."""
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"shard-{start // SHARD:04d}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for number in range(start, min(start + SHARD, count)):
                for suffix, data in (("png", PIXEL), ("json", json.dumps(row(number)).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def blocks(folder):
    """The data block of each format."""
    lines = {"type": "llava_json", "path": str(folder / "rows.jsonl"), "image_folder": str(folder)}
    parquet = {"path": str(folder / "rows.parquet")}
    sources = [
        {"name": "lines", "data": lines, "weight": 3},
        {"name": "tars", "data": {"type": "webdataset", "shards": str(folder / "shard-*.tar")}, "weight": 1},
    ]
    return {
        "llava_json JSONL": lines,
        "llava_json JSON": {**lines, "path": str(folder / "rows.json")},
        "table CSV": {"type": "table", "path": str(folder / "rows.csv")},
        "table Parquet": {"type": "table", **parquet},
        "hf_dataset": {"type": "hf_dataset", **parquet, "images": "image", "text": "conversations"},
        "webdataset": sources[1]["data"],
        "mixture": {"type": "mixture", "sources": sources},
        EAGER: lines,
    }


def memory():
    """MB of this process: its own, and pages of mapped files, which the system takes back when it has to."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return own, files


def measure(folder, name):
    """Open one format here: samples, seconds, MB more than before, MB of mapped files, microseconds each."""
    import datasets

    from vlmkit.data.formats import DATA_FORMATS

    datasets.disable_progress_bars()
    options = blocks(Path(folder))[name]
    before = memory()
    began = time.process_time()
    samples = DATA_FORMATS[options["type"]](**{k: v for k, v in options.items() if k != "type"})
    if name == EAGER:
        samples = list(samples)
    seconds = time.process_time() - began
    numbers = random.Random(0).sample(range(len(samples)), READS)
    began = time.process_time()
    for number in numbers:
        _ = samples[number]
    each = (time.process_time() - began) / READS
    after = memory()
    print(json.dumps([len(samples), seconds, after[0] - before[0], after[1] - before[1], each * 1e6]))


def main():
    """Measure every format at every size."""
    scratch = tempfile.TemporaryDirectory()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else scratch.name)
    lines = []
    for count in SIZES:
        folder = root / str(count)
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for write in (write_text, write_parquet, write_tars):
                write(folder, count)
        names = (*FORMATS, EAGER) if count <= 100_000 else FORMATS
        for name in names:
            caches = {"HF_HOME": str(root / "hf"), "VLMKIT_CACHE": str(root / "cache")}
            seconds = []
            for _ in range(1 + (name in CACHED)):
                command = [sys.executable, __file__, "--measure", str(folder), name]
                done = subprocess.run(command, env={**os.environ, **caches}, capture_output=True, check=True)
                found, took, own, files, each = json.loads(done.stdout.splitlines()[-1])
                seconds.append(took)
            assert found == count * (2 if name == "mixture" else 1)
            times = " / ".join(f"{took:.1f}" for took in seconds)
            lines.append(f"| {name} | {found:,} | {own:.0f} | {files:.0f} | {times} | {each:.0f} |")
            print(lines[-1], flush=True)
    table = "\n".join([HEAD, "| --- " * 6 + "|", *lines])
    RESULTS.write_text(f"# Memory of data sets\n\n{WHAT}\n\n{table}\n\n{NOTE}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
