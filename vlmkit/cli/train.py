"""Train a model from a recipe, stage by stage."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit train`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. stages.vqa.steps=10 seed=1")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run if it is there, else start it"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="try the recipe in seconds: tiny random parts, a bundled sample",
    )


def run(args: argparse.Namespace) -> int:
    """Check the whole recipe, then train."""
    from vlmkit.assemble import check_blocks
    from vlmkit.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides, check_blocks)
    from vlmkit.cli.console import TrainConsole
    from vlmkit.tiny import tiny_runs
    from vlmkit.train.loop import Interrupted
    from vlmkit.train.run import train_recipe

    *before, last = tiny_runs(recipe) if args.tiny else [recipe]
    with TrainConsole() as console:
        try:
            for source in before:
                train_recipe(source, True, console)
            console.summary(train_recipe(last, args.resume, console))
        except KeyboardInterrupt:
            # Outside the steps (saving, evaluating), where nothing is lost: every checkpoint is there.
            raise Interrupted(f"interrupted; {last.run_dir} goes on with --resume") from None
    return 0
