"""The quickstart for several seeds: exact match by kind of question, blind score, precision@10, CPU time.

    python benchmarks/quickstart_seeds.py 0 1 2

Writes benchmarks/results/quickstart.md. The test split is looked at here and nowhere else.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

from vlmkit import load_encoder, load_recipe, train_recipe
from vlmkit.assemble import check_blocks
from vlmkit.cli.console import TrainConsole
from vlmkit.data.formats import DATA_FORMATS
from vlmkit.quickstart import fill_gallery, precision_at_10
from vlmkit_retrieval import Index

RESULTS = Path(__file__).parent / "results" / "quickstart.md"
KINDS = ("all", "shape", "colour", "yes/no")


def one_seed(seed, folder):
    """Train, evaluate, index: one row of the table."""
    recipe = load_recipe("quickstart", [f"seed={seed}", f"output={folder}/run-{seed}"], check_blocks)
    began, wall = time.process_time(), time.perf_counter()
    with TrainConsole() as console:
        run = train_recipe(recipe, resume=True, reporter=console)
    cpu, wall = time.process_time() - began, time.perf_counter() - wall
    steps = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    gallery = Path(folder) / "gallery"
    fill_gallery(gallery)
    encoder = load_encoder(run.path)
    with Index.create_or_open(Path(folder) / f"index-{seed}") as index:
        index.sync([gallery], encoder, reference=str(run.path))
        precision, queries, images = precision_at_10(index, encoder, DATA_FORMATS["easy_vqa"](split="test"))
    return {
        "seed": seed,
        "report": run.report,
        "precision": precision,
        "gallery": f"{queries} queries over {images} labelled images",
        "train_wall": sum(s["seconds"] for s in steps),
        "cpu": cpu,
        "wall": wall,
    }


def table(rows):
    """Markdown, one row a seed."""
    head = ["seed", *[f"exact match, {k}" for k in KINDS], "blind, all", "blind, yes/no", "precision@10"]
    head += ["training steps, wall s", "train + evaluate, CPU s"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        exact, blind = row["report"]["exact_match"], row["report"]["blind"]
        cells = [
            str(row["seed"]),
            *[f"{exact[k]:.2%}" for k in KINDS],
            f"{blind['all']:.2%}",
            f"{blind['yes/no']:.2%}",
        ]
        cells += [f"{row['precision']:.3f}", f"{row['train_wall']:.0f}", f"{row['cpu']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    """Run the seeds and write the table."""
    seeds = [int(s) for s in sys.argv[1:]] or [0, 1, 2]
    with tempfile.TemporaryDirectory() as folder:
        rows = [one_seed(seed, folder) for seed in seeds]
    report = rows[0]["report"]
    command = f"python benchmarks/quickstart_seeds.py {' '.join(map(str, seeds))}"
    text = (
        "# Quickstart on easy-VQA, test split\n\n"
        f"`{command}`: {report['questions']:,} questions about {report['images']:,} images, generated "
        "answers; "
        f"precision@10 of text search: {rows[0]['gallery']}.\n\n{table(rows)}\n\n"
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.\n"
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
