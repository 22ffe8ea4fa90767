"""Search over drawings by text and by picture: train, index and evaluate with the commands of a user.

    python benchmarks/retrieval_data.py data/emoji --archives FOLDER
    python benchmarks/retrieval_emoji.py data/emoji --work runs/emoji --seeds 0 1 2 --long 0

Each seed runs `vlmkit train retrieval_emoji`, `vlmkit index sync` and `vlmkit eval`; CPU seconds are those of
the training process, from its start to its end. `--long` names seeds that are trained `LONG` times as many
steps, too. `--tune` does all of it on the tuning task. Writes benchmarks/results/retrieval_emoji.md unless it
tunes.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from vlmkit import load_recipe

RESULTS = Path(__file__).parent / "results" / "retrieval_emoji.md"
RECIPE = "retrieval_emoji"
LONG = 4
RANKS = (1, 5, 10)
GALLERIES = {
    "newstyle": "text to image, new style",
    "unseen": "text to image, unseen concepts",
    "drawn": "image to image, unseen concepts",
}


def vlmkit(*words):
    """Run a command of a user; gives its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "vlmkit", *map(str, words)], check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(data, run, seed, times, overrides):
    """Train with one seed, unless it was done before; gives CPU seconds."""
    noted = run.with_suffix(".cpu")
    if not noted.exists():
        steps = load_recipe(RECIPE, overrides).stages[0].steps * times
        changed = [f"seed={seed}", f"output={run}", f"stages.contrastive.steps={steps}"]
        folder = f"stages.contrastive.data.folder={data / 'train'}"
        noted.write_text(str(vlmkit("train", RECIPE, folder, *overrides, *changed)))
    return float(noted.read_text())


def recalls(data, run, gallery):
    """Recall at `RANKS` of a gallery's queries, through an index."""
    index, report = run.with_name(f"{run.name}-{gallery}"), run.with_name(f"{run.name}-{gallery}.json")
    vlmkit("index", "sync", index, data / gallery, "--encoder", run)
    vlmkit("eval", index, "--qrels", data / gallery / "qrels.tsv", "-k", max(RANKS), "--json", report)
    by_query = json.loads(report.read_text())["by_query"]
    # One item is relevant to a query, so its reciprocal rank says at which rank it came.
    reciprocal = np.array([own[f"mrr@{max(RANKS)}"] for own in by_query.values()])
    return [float((reciprocal >= 1 / rank - 1e-9).mean()) for rank in RANKS]


def pixel_recalls(data):
    """The image-to-image task by the cosine of 16x16 pixels."""
    queries = [json.loads(line) for line in (data / "drawn/queries.jsonl").read_text().splitlines()]
    found = [_thumbnail(data / "drawn" / query["image"]) for query in queries]
    items = [_thumbnail(data / "drawn" / f"{query['_id']}.png") for query in queries]
    cosines = np.stack(found) @ np.stack(items).T
    ranks = (cosines > cosines.diagonal()[:, None]).sum(1)
    return [float((ranks < rank).mean()) for rank in RANKS]


def _thumbnail(path):
    pixels = np.asarray(Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR), float)
    return pixels.ravel() / np.linalg.norm(pixels)


def row(name, cpu, cells):
    """A line of the table: recalls as `R@1 / R@5 / R@10`."""
    shown = [" / ".join(f"{value:.3f}" for value in own) if own else "" for own in cells]
    return "| " + " | ".join([name, f"{cpu:.0f}" if cpu else "", *shown]) + " |"


def one_run(data, args, seed, times):
    """One line of the table."""
    run = args.work / f"seed-{seed}-x{times}"
    cpu = train(data, run, seed, times, args.overrides)
    line = row(f"seed {seed}, x{times}", cpu, [recalls(data, run, gallery) for gallery in GALLERIES])
    print(line, flush=True)
    return line


def main():
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for runs and indexes")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--long", type=int, nargs="*", default=[])
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data / "tune" if args.tune else args.data
    lines = [one_run(data, args, seed, 1) for seed in args.seeds]
    lines += [one_run(data, args, seed, LONG) for seed in args.long]
    lines.append(row("pixels, 16x16", None, [None, None, pixel_recalls(data)]))
    sizes = json.loads((args.data / "sizes.json").read_text())["tune" if args.tune else "task"]
    counts = [sizes["newstyle"], sizes["unseen"], sizes["unseen"]]
    lines.append(row("chance", None, [[rank / count for rank in RANKS] for count in counts]))
    head = ["", "training, CPU s", *(f"{what}: R@1/5/10" for what in GALLERIES.values())]
    table = "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines])
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    text = (
        f"# Search over drawings\n\n`python benchmarks/retrieval_emoji.py`: {json.dumps(sizes)}.\n\n"
        f"{table}\n\n"
        f"{platform.machine()}, {threads} threads, torch {version('torch')}.\n"
    )
    print(text)
    if not args.tune:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
