"""Training in vlmkit against transformers' Trainer: the same LLaVA, rows, order and hyper-parameters.

    python benchmarks/train.py                       # curves of 200 steps, three timed rounds of 40
    python benchmarks/train.py --steps 30 --rounds 1 # quick

Each side runs in a process of its own, all in turn in each round; prints ratios. Without options it also
writes benchmarks/results/train.md, else what --output names. Needs Linux (resident memory is read from
/proc).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "train.md"
BATCH, WARM_UP, REFERENCE = 8, 5, "transformers"
NOISE = "transformers, rows reversed"
SIDES = (
    REFERENCE,
    "vlmkit",
    "vlmkit, packed",
    "transformers, grouped",
    "vlmkit, grouped",
    NOISE,
)
SAME_ORDER = (NOISE, "vlmkit", "vlmkit, packed")
HEAD = (
    "side", "samples/s", "samples per CPU s", "ratio, wall", "ratio, CPU", "peak MB", "ratio, peak",
    "peak above start, ratio", "padding", "loss, first ten", "loss, all",
)  # fmt: skip


def run(script, threads, *arguments):
    """A Python process with these threads; this one has no torch, so that the machine is the sides'."""
    changed = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **changed}, check=False, **quiet)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")


def measured(side, folder, steps, threads):
    """A side's report, with the rates after the warm-up."""
    file = folder / f"{side}-{time.time_ns()}.json"
    run("train_sides.py", threads, side, folder, steps, file)
    report = json.loads(file.read_text())
    first, last = report["steps"][min(WARM_UP, steps // 2)], report["steps"][-1]
    samples = BATCH * (len(report["steps"]) - 1 - min(WARM_UP, steps // 2))
    report["wall"], report["cpu"] = (samples / (b - a) for a, b in zip(first, last))
    print(f"{side}: {report['cpu']:.2f} samples per CPU s, {report['peak'] / 1e6:.0f} MB", flush=True)
    return report


def rounds(folder, options, steps):
    """Name to reports: those with curves run `steps` in the first round; all others are short."""
    reports = {side: [] for side in options.sides}
    for number in range(options.rounds):
        for side in options.sides:
            curve = not number and side in (REFERENCE, *SAME_ORDER)
            if side != NOISE or curve:
                reports[side].append(
                    measured(side, folder, steps if curve else options.timed, options.threads)
                )
    return reports


def table(reports):
    """Markdown, one row a side."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    reference = reports[REFERENCE]
    for side, own in reports.items():
        cells = [side, *(f"{statistics.median(r[name] for r in own):.2f}" for name in ("wall", "cpu"))]
        cells += [f"{paired(own, reference, name):.2f}x" for name in ("wall", "cpu")]
        cells.append(f"{own[0]['peak'] / 1e6:.0f}")
        cells += [f"{own[0][name] / reference[0][name]:.2f}x" for name in ("peak", "above")]
        cells.append(f"{1 - own[0]['tokens'] / own[0]['positions']:.0%}")
        cells += differences(own[0], reference[0]) if side in SAME_ORDER else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired(own, reference, name):
    """Median over rounds of the ratio to the reference in the same round."""
    return statistics.median(a[name] / b[name] for a, b in zip(own, reference))


def differences(own, reference):
    """Largest difference of losses to the reference: of the first ten steps, and of all."""
    gaps = [abs(a - b) for a, b in zip(own["losses"], reference["losses"], strict=True)]
    return [f"{max(gaps[:10]):.1e}", f"{max(gaps):.1e}"]


def section(vocabulary, folder, options, steps):
    """Heading, sizes and table of one vocabulary."""
    run("train_models.py", options.threads, folder, vocabulary, BATCH * steps)
    facts = json.loads((folder / "facts.json").read_text())
    reports = rounds(folder, options, steps)
    first, last = ([f"{sum(r[0]['losses'][s]) / 10:.3f}" for r in reports.values()]
                   for s in (slice(10), slice(-10, None)))  # fmt: skip
    return (
        f"## Vocabulary of {facts['vocabulary']:,} ({vocabulary})\n\n"
        f"{facts['parameters'] / 1e6:.1f} M parameters; the head is {facts['head_share']:.0%} of the "
        f"language model's multiplications.\n\n{table(reports)}\n\n"
        f"Mean loss of the first ten steps, side by side: {', '.join(first)}; of the last ten: "
        f"{', '.join(last)}.\n"
    )


def main():
    """Run every side and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="of the curves, of the first vocabulary")
    parser.add_argument("--timed", type=int, default=40, help="steps elsewhere")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--vocabularies", nargs="+", default=["small", "smollm2"])
    parser.add_argument("--output", type=Path, help="table (the committed one, if nothing is set)")
    options = parser.parse_args()
    if options == parser.parse_args([]):
        options.output = RESULTS
    parts = []
    for number, vocabulary in enumerate(options.vocabularies):
        with tempfile.TemporaryDirectory() as folder:
            steps = options.timed if number else options.steps
            parts.append(section(vocabulary, Path(folder), options, steps))
    text = "\n".join([heading(options), *parts])
    if options.output is not None:
        options.output.write_text(text)
    print(text)


def heading(options):
    """What was run, and where."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    return (
        "# Training against transformers' Trainer\n\n"
        f"`python benchmarks/train.py {' '.join(sys.argv[1:])}`".replace(" `", "`")
        + f": {platform.machine()}, {options.threads} "
        f"thread{'s' * (options.threads > 1)}, {versions}, float32.\n"
    )


if __name__ == "__main__":
    main()
