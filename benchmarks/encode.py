"""Images to features: vlmkit, transformers, sentence-transformers and timm on the same random weights.

    python benchmarks/encode.py                  # all, writes benchmarks/results/encode.md
    python benchmarks/encode.py --only folder    # one part: encoder, patches, folder, naflex, memory

The other sides, into a directory of their own (each is left out where it cannot be imported):

    pip install --target /some/folder --no-deps sentence-transformers timm
    pip install --target /some/folder --no-deps torchvision    # the build that fits your torch
    PYTHONPATH=/some/folder python benchmarks/encode.py

All sides run in turn in one process, two threads, after their vectors were compared; the table has medians.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import importlib.util
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from encode_models import PUBLISHED, Models, unit
from encode_naflex import BUDGETS, NaFlex
from encode_sides import BATCH, folder_sides, photographs

RESULTS = Path(__file__).parent / "results" / "encode.md"
THREADS = 2
# Short cases take this many times the rounds: a median of three passes of half a second says little.
SHORT = 4
SIZES = [(640, 480), (1920, 1080), (4000, 3000)]
HEADER = """# Images to features

`python benchmarks/encode.py --device {device}`: torch {torch}, transformers {transformers}, float32, two
threads, passive OpenMP, the same random weights on every side. "ours, wall" is the side's wall time over
ours, the median over the rounds, all sides in turn in each round; "ours, CPU" the same of CPU time, worker
processes included. "max diff" is the largest difference of the unit-length vectors (of patch tokens where no
vector is made) to the first side. Draft decoding gives other pixels, so its difference is shown, not judged.

- transformers: `processor(images, return_tensors="pt")` and `model(pixel_values=...)`; "DataLoader" does the
  first in two worker processes that stay alive between passes.
- sentence-transformers: `SentenceTransformer(folder).encode(images, normalize_embeddings=True)`.
- timm: `create_model(...)(pixels)`, `timm.data.create_transform(...)`."""
# Largest difference of unit-length vectors that still counts as equal: PIL and torchvision round apart.
EQUAL = {"torchvision": 2e-3, "": 1e-5}


def cpu_seconds():
    """CPU seconds of this process and of its worker processes."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def in_turn(sides, rounds, device):
    """Wall and CPU seconds of each side, round by round."""
    seconds = {name: [] for name in sides}
    for turn in range(rounds):
        # Every other round backwards, so that no side always follows the same one.
        for name, run in list(sides.items())[:: -1 if turn % 2 else 1]:
            wall, cpu = time.perf_counter(), cpu_seconds()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    return seconds


def compare(sides, exempt=()):
    """Every side's vectors against the first side's: also the warm-up. What is exempt is not judged."""
    vectors = {name: run() for name, run in sides.items()}
    ours = next(iter(vectors.values()))
    gaps = {name: float(np.abs(theirs - ours).max()) for name, theirs in vectors.items()}
    for name, gap in gaps.items():
        allowed = next(limit for part, limit in EQUAL.items() if part in name)
        if gap > allowed and name not in exempt:
            sys.exit(f"{name}: its vectors differ by {gap:.1e}; the sides do not do the same")
    return gaps


def table(title, sides, images, rounds, device, exempt=()):
    """Compare, time, and write down; ratios are the median of the rounds' own ratios."""
    gaps = compare(sides, exempt)
    seconds = in_turn(sides, rounds, device)
    first = next(iter(seconds.values()))
    lines = [f"\n## {title}\n", "| side | images/s | images per CPU s | ours, wall | ours, CPU | max diff |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, took in seconds.items():
        rates = [images / statistics.median(column) for column in zip(*took)]
        ratios = [statistics.median(theirs[k] / ours[k] for ours, theirs in zip(first, took)) for k in (0, 1)]
        lines.append(
            f"| {name} | {rates[0]:.2f} | {rates[1]:.2f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x "
            f"| {gaps[name]:.1e} |"
        )
    print("\n".join(lines), flush=True)
    return lines


def encoder_part(options):
    """The encoder alone: pixels in memory to retrieval vectors."""
    lines = []
    for name, published in PUBLISHED.items():
        title = f"{name}, encoder alone, {BATCH} images"
        sides = encoder_sides(Models(published, options.device))
        lines += table(title, sides, BATCH, SHORT * options.rounds, options.device)
    return lines


def encoder_sides(models):
    """The same pixels for every side."""
    pixels_BCHW = torch.randn(BATCH, 3, 224, 224)
    batch = models.batch(pixels_BCHW)
    sides = {
        "vlmkit": lambda: models.ours.embed_batch(batch),
        "transformers": lambda: models.vectors(pixels_BCHW),
    }
    if importlib.util.find_spec("timm"):
        timm = models.timm()
        sides["timm"] = lambda: unit(timm(pixels_BCHW.to(models.device)))
    return sides


def patches_part(options):
    """Patch tokens of the last but one layer, as a VLM reads them: `pooled: false` skips what lies above."""
    models = Models(PUBLISHED["CLIP ViT-B/16 224"], options.device, pooled=False)
    pixels_BCHW = torch.randn(BATCH, 3, 224, 224)
    batch = models.batch(pixels_BCHW)

    def theirs():
        hidden = models.theirs(pixel_values=pixels_BCHW.to(options.device), output_hidden_states=True)
        return hidden.hidden_states[-2][:, 1:].flatten(0, 1).cpu().numpy()

    sides = {
        "vlmkit, pooled=false": lambda: models.ours(models.ours.move(batch)).patches_TV.cpu().numpy(),
        "transformers, output_hidden_states": theirs,
    }
    title = f"CLIP ViT-B/16 224, patches of layer -2 alone, {BATCH} images (11 blocks against 12)"
    return table(title, sides, BATCH, SHORT * options.rounds, options.device)


def folder_part(options):
    """JPEG files to vectors."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, published in PUBLISHED.items():
            if published.family == "siglip":
                continue
            models = Models(published, options.device)
            for size in SIZES:
                paths = photographs(Path(folder), size, options.images)
                built = folder_sides(models, paths, Path(folder))
                sides = {side: build() for side, build in built.items()}
                kib = sum(p.stat().st_size for p in paths) / len(paths) / 1024
                title = f"{name}, {len(paths)} JPEG files of {size[0]}x{size[1]} ({kib:.0f} KiB), 2 workers"
                drafted = [side for side in sides if "draft" in side]
                lines += table(title, sides, len(paths), options.rounds, options.device, drafted)
    return lines


def naflex_part(options):
    """Views of 64 to 1024 patches in one batch: packed here, padded to the longest in transformers."""
    models = NaFlex(options.device, options.images)
    sides = {
        "vlmkit, packed": models.packed,
        "transformers, padded": models.padded,
        "transformers, one image at a time": models.one_by_one,
    }
    budgets = ", ".join(map(str, BUDGETS))
    title = f"SigLIP 2 NaFlex-B/16, encoder alone, {options.images} images of {budgets} patches in turn"
    return table(title, sides, options.images, options.rounds, options.device)


def memory_part(options):
    """What a fresh process needs on top of the loaded models to read the largest files, once a side."""
    title = f"Memory above the models', CLIP ViT-B/16 224, {options.images} JPEG files of 4000x3000"
    lines = [f"\n## {title}\n", "| side | MiB at most |", "| --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), SIZES[-1], options.images)
        models = Models(PUBLISHED["CLIP ViT-B/16 224"], "cpu")
        for name in folder_sides(models, [], Path(folder)):
            again = [sys.executable, __file__, "--memory-of", name, "--folder", folder]
            done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
            lines.append(f"| {name} | {done.stdout.split()[-1]} |")
    print("\n".join(lines), flush=True)
    return lines


def one_side(options):
    """In a process of its own: run a side once, print what it took above the models.

    Of worker processes the memory of their own after the pass is counted, not the most of it.
    """
    models = Models(PUBLISHED["CLIP ViT-B/16 224"], options.device)
    folder = Path(options.folder)
    run = folder_sides(models, sorted(folder.glob("*.jpg")), folder)[options.memory_of]()
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before = _kib("/proc/self/status", "VmRSS")
    run()
    most = _kib("/proc/self/status", "VmHWM") - before
    for child in multiprocessing.active_children():
        most += _kib(f"/proc/{child.pid}/smaps_rollup", "Private_Dirty")
    print(most // 1024)


def _kib(file, name):
    return int(Path(file).read_text().split(f"{name}:")[1].split()[0])


PARTS = {
    "encoder": encoder_part,
    "patches": patches_part,
    "folder": folder_part,
    "naflex": naflex_part,
    "memory": memory_part,
}


def main():
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        if options.memory_of:
            return one_side(options)
        lines = [
            HEADER.format(torch=torch.__version__, transformers=transformers.__version__, **vars(options))
        ]
        for part in [options.only] if options.only else PARTS:
            lines += PARTS[part](options)
    if not options.only:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
