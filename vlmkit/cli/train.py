"""Train a model from a recipe, stage by stage."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmkit.share import SHARE_LIMIT


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit train`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. stages.vqa.steps=10 seed=1")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run if it is there, else start it"
    )
    parser.add_argument(
        "--resume-from",
        metavar="STAGE-step-N",
        help="go on from this checkpoint of the run, not its newest; later ones are set aside",
    )
    parser.add_argument(
        "--share",
        type=Path,
        metavar="DIR",
        help="do work that runs have in common once, and keep it there: stages, tokens, frozen features",
    )
    parser.add_argument(
        "--share-limit",
        type=float,
        default=SHARE_LIMIT,
        metavar="GB",
        help="most gigabytes of one frozen encoder's features in DIR (default %(default)g)",
    )
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="TRACKER",
        help="log every step there (tensorboard, wandb, mlflow, trackio), in place of the recipe's trackers; "
        "may be given several times",
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

    tracked = [f"trackers=[{', '.join(args.track)}]"] if args.track else []
    recipe = load_recipe(args.recipe, [*args.overrides, *tracked], check_blocks)
    from vlmkit.cli.console import TrainConsole
    from vlmkit.tiny import tiny_runs
    from vlmkit.train.distribute import process_state
    from vlmkit.train.restore import rewind
    from vlmkit.train.run import look_for_run, train_recipe
    from vlmkit.train.stage_run import Interrupted
    from vlmkit.train.trackers import require_trackers

    *before, last = tiny_runs(recipe) if args.tiny else [recipe]
    with TrainConsole() as console:
        try:
            if args.resume_from is not None:
                # Going back takes things out of the way: nothing may refuse the run after it.
                require_trackers(last.trackers)
                look_for_run(last, resume=True)
            for source in before:
                train_recipe(source, True, console)
            if args.resume_from is not None:
                rewind(last.run_dir, args.resume_from, console)
            resume = args.resume or args.resume_from is not None
            run = train_recipe(last, resume, console, args.share, args.share_limit)
            if process_state().is_main_process:
                console.summary(run)
        except KeyboardInterrupt:
            # Outside the steps (saving, evaluating), where nothing is lost: every checkpoint is there.
            raise Interrupted(f"interrupted; {last.run_dir} goes on with --resume") from None
    return 0
