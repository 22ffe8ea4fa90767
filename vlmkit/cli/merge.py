"""Write the whole model of a run's checkpoint, its adapters merged into the weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit merge`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's directory, finished or not")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model's new folder")
    parser.add_argument("--checkpoint", metavar="STAGE-step-N", help="one of the run's (the newest)")
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="of a language model in 4 bits (QLoRA): write the float32 numbers that these stand for",
    )


def run(args: argparse.Namespace) -> int:
    """Merge, compare, write; say what was done."""
    from vlmkit.cli.console import quiet_loading
    from vlmkit.train.merge import merge_run

    quiet_loading()
    merged = merge_run(args.run, args.output, args.checkpoint, args.dequantize)
    done = "adapters merged" if merged.adapters else "it has no adapters, nothing to merge"
    sys.stdout.write(
        f"{merged.path}: the model of {args.run} at {merged.checkpoint}; {done}\n"
        f"logits differ by at most {merged.difference:.1e} on {merged.rows}\n"
    )
    return 0
