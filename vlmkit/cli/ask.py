"""Ask a trained model a question about an image."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmkit.vlm import VLM


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit ask`."""
    parser.add_argument("model", metavar="RUN", help="a run's directory")
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument("question", metavar="QUESTION")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print the answer while it is made")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quantize", metavar="METHOD", help="nf4 or fp4: the language model in 4 bits")
    parser.add_argument("--max-new-tokens", type=positive, default=64, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Load, answer, print."""
    from vlmkit.data.sample import open_image

    image = open_image(args.image)
    model = load_model(args.model, args.quantize)
    began = time.perf_counter()
    if args.stream:
        for piece in model.stream(image, args.question, max_new_tokens=args.max_new_tokens):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return 0
    answer = model.ask(image, args.question, max_new_tokens=args.max_new_tokens)
    if args.json:
        from vlmkit.cli.console import print_json

        seconds = round(time.perf_counter() - began, 3)
        print_json({"image": args.image, "question": args.question, "answer": answer, "seconds": seconds})
    else:
        sys.stdout.write(answer + "\n")
    return 0


def load_model(path: str, quantize: str | None) -> VLM:
    """Load a run, in 4 bits if asked; the memory before and after goes to stderr."""
    import torch

    from vlmkit import VLM
    from vlmkit.checkpoint import require_model
    from vlmkit.cli.console import quiet_loading

    quiet_loading()
    require_model(path)
    if quantize is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: VLM = VLM.from_pretrained(path).eval().to(device)
        return model
    from vlmkit.quantize import load_quantized, memory_bytes

    small: VLM = load_quantized(path, quantize).eval()
    before = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    sys.stderr.write(f"{quantize}: {before / 1e6:.2f} MB before, {memory_bytes(small) / 1e6:.2f} MB after\n")
    return small


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number
