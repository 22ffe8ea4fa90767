"""Draw what an encoder or a model sees in an image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.cli.ask import positive
from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit.encoders.base import VisionEncoder
    from vlmkit.vlm import VLM


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit look`."""
    parser.add_argument("model", metavar="RUN|FAMILY:WEIGHTS", help="a run's directory, or an encoder")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of an encoder by name, as in a recipe"
    )
    parser.add_argument("-o", "--output", default="look.png", metavar="PNG", help="the picture (look.png)")
    parser.add_argument(
        "--only", type=names, metavar="PANELS", help="image,pca,attention,similarity,positions,answer"
    )
    parser.add_argument(
        "--at", type=point, metavar="X,Y", help="a pixel of the image whose patch is compared (centre)"
    )
    parser.add_argument("--layer", type=positive, metavar="N", help="attention layer of the encoder, from 1")
    parser.add_argument("--head", type=positive, metavar="N", help="attention head of the encoder, from 1")
    parser.add_argument(
        "--from",
        dest="source",
        choices=("prefix", "mean", "at"),
        help="whose attention: the first prefix token (CLS), the mean of all patches, the patch --at",
    )
    parser.add_argument("--question", metavar="TEXT", help="where the model looks when it answers")
    parser.add_argument("--token", type=positive, metavar="N", help="token of the answer, from 1 (1)")
    parser.add_argument(
        "--llm-layer", type=positive, metavar="N", help="attention layer of the LLM, from 1 (the middle one)"
    )


def run(args: argparse.Namespace) -> int:
    """Load, look, draw; say what was drawn, and on stderr what was not and why."""
    _check(args)
    from vlmkit.data.sample import open_image
    from vlmkit.overrides import read_overrides

    image = open_image(args.image)
    model = _load(args.model, read_overrides(args.overrides), whole=args.question is not None)
    from vlmkit.look import Options, look

    options = Options(
        args.head, args.layer, args.source, args.at, args.question, args.token or 1, args.llm_layer
    )
    title = f"{Path(args.image).name} seen by {args.model}"
    seen = look(model, image, args.output, options, args.only, title)
    sys.stdout.write(f"{args.output}: {', '.join(seen.panels)}\n")
    for name, reason in seen.left_out.items():
        sys.stderr.write(f"{name} is left out: {reason}\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    from vlmkit.encoders import ENCODERS

    if args.question is None and (args.token or args.llm_layer):
        raise UsageError("--token and --llm-layer choose from an answer; give --question TEXT too")
    folder = Path(args.output).resolve().parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; make it, or give another --output")
    if args.model in ENCODERS and not Path(args.model).is_dir():
        raise UsageError(
            f"encoder {args.model!r} without weights is random and shows nothing; "
            f"give {args.model}:WEIGHTS (a hub id or a folder), or a run's directory"
        )


def _load(reference: str, options: dict[str, Any], whole: bool) -> VisionEncoder | VLM:
    """The encoder alone, or with `whole` the model that a question needs."""
    from vlmkit.cli.ask import load_model
    from vlmkit.cli.console import quiet_loading
    from vlmkit.embedders import load_encoder

    quiet_loading()
    if not whole:
        return load_encoder(reference, **options)
    if not Path(reference).is_dir():
        raise UsageError(
            f"--question needs the run of a model with a language model; {reference!r} is no directory"
        )
    if options:
        raise UsageError(f"{reference} is a run, its options are stored; leave out {', '.join(options)}")
    return load_model(reference, None)


def point(text: str) -> tuple[float, float]:
    """`X,Y` as two numbers, for argparse."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y, such as 120,80") from None
    return x, y


def names(text: str) -> list[str]:
    """Comma-separated names, for argparse."""
    return [part.strip() for part in text.split(",") if part.strip()]
