"""Say what a recipe would do: parts, what trains, tokens an image, steps; nothing is trained."""

from __future__ import annotations

import argparse
import sys

SIZES = ((64, 64), (640, 480), (1920, 1080))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit plan`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")


def run(args: argparse.Namespace) -> int:
    """Assemble the model, apply each stage, and print the tables."""
    from vlmkit.assemble import assemble, build_data, check_blocks, check_fit
    from vlmkit.cli.console import print_parts, quiet_loading
    from vlmkit.recipe import load_recipe
    from vlmkit.train.schedule import total_steps
    from vlmkit.train.stage import apply_stage, finish_stage

    recipe = load_recipe(args.recipe, args.overrides, check_blocks)
    quiet_loading()
    model = assemble(recipe)
    check_fit(recipe, model)
    for stage in recipe.stages:
        samples = len(build_data(stage.data))
        steps = total_steps(stage, samples)
        print_parts(f"stage {stage.name}: {samples:,} samples, {steps:,} steps", apply_stage(model, stage))
        finish_stage(model)
    for size in SIZES:
        sys.stdout.write(
            f"an image of {size[0]} x {size[1]} pixels takes {model.count_tokens(size)} tokens\n"
        )
    return 0
