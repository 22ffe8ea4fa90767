"""The command line: one verb, one file. `--help` loads neither torch nor transformers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from vlmkit import __version__
from vlmkit.cli import ask, data, encoder, index, list_, look, merge, plan, rag, search, sweep, train
from vlmkit.cli import eval as eval_

Run = Callable[[argparse.Namespace], int]
VERBS = {
    "train": train,
    "plan": plan,
    "merge": merge,
    "sweep": sweep,
    "list": list_,
    "data": data,
    "encoder": encoder,
    "ask": ask,
    "look": look,
    "index": index,
    "search": search,
    "eval": eval_,
    "rag": rag,
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="vlmkit",
        description="Vision-language models from recipes, and multimodal RAG on the same encoders.",
    )
    top.add_argument("--version", action="version", version=f"vlmkit {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.arguments(verb)
    return top


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command; `key=value` may stand before and after options, which argparse alone does not take."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 it failed; 2 it was used wrongly; 130 interrupted.
    """
    # Threads that spin while waiting starve each other on shared cores; only the command line decides this.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = parse(argv)
    run: Run = VERBS[args.verb].run
    try:
        return run(args)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        if _is_for_users(error):
            return _fail(str(error), getattr(error, "exit_code", 1))
        said = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {said}; --debug shows where it happened", 1)


def _is_for_users(error: Exception) -> bool:
    """Our own errors carry an exit code; a full disk or a missing permission explains itself."""
    return hasattr(error, "exit_code") or (isinstance(error, OSError) and error.strerror is not None)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"vlmkit: {message}\n")
    return code
