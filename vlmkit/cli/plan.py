"""Say what a recipe would do: parts, what trains, tokens an image, steps, memory; nothing is trained."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmkit.plan import StagePlan


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit plan`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    parser.add_argument(
        "--fetch", action="store_true", help="download config.json of models whose shapes are not bundled"
    )


def run(args: argparse.Namespace) -> int:
    """Plan on meta tensors and print the tables."""
    from vlmkit.assemble import check_blocks
    from vlmkit.cli.console import print_parts, quiet_loading
    from vlmkit.plan import make_plan
    from vlmkit.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides, check_blocks)
    quiet_loading()
    plan = make_plan(recipe, args.fetch)
    for stage in plan.stages:
        print_parts(f"stage {stage.name}: {_length(stage)}", stage.parts)
        sys.stdout.write(_memory(stage) + "\n")
    for (width, height), tokens in plan.tokens.items():
        seen = plan.looked_at.get((width, height))
        beside = f" token of the sequence; blocks look at {seen}" if seen is not None else " tokens"
        sys.stdout.write(f"an image of {width} x {height} pixels takes {tokens}{beside}\n")
    for note in plan.notes:
        sys.stdout.write(f"note: {note}\n")
    return 0


def _length(stage: StagePlan) -> str:
    samples = "data not found" if stage.samples is None else f"{stage.samples:,} samples"
    return f"{samples}, " + ("steps unknown" if stage.steps is None else f"{stage.steps:,} steps")


def _memory(stage: StagePlan) -> str:
    """GB are 10^9 bytes."""
    m = stage.memory
    named = ("weights", "gradients", "optimizer", "activations")
    parts = ", ".join(f"{name} {getattr(m, name) / 1e9:.2f}" for name in named)
    return f"  about {m.total / 1e9:.2f} GB a device for {m.rows} rows of {m.tokens} tokens: {parts}"
