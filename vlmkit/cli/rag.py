"""Answer a question from an index: retrieve, ask about each hit, aggregate, cite."""

from __future__ import annotations

import argparse
import sys

from vlmkit.cli import asking
from vlmkit.cli.ask import load_model, positive


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit rag`."""
    parser.add_argument("index", metavar="INDEX", help="the index's directory")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--vlm", required=True, metavar="RUN", help="the model that answers")
    parser.add_argument("-k", type=positive, default=8, metavar="N", help="images to look at (8)")
    parser.add_argument(
        "--rule", default="auto", choices=["auto", "any", "all", "majority"], help="how answers combine"
    )
    asking.arguments(parser)
    parser.add_argument("--quantize", metavar="METHOD", help="nf4 or fp4: the language model in 4 bits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Retrieve, ask, print the answer and its evidence."""
    from vlmkit.cli.console import print_json, shown
    from vlmkit.cli.search_encoders import to_search_with
    from vlmkit_retrieval import Index, answer_question

    options = asking.options(args)
    with Index.open(args.index) as index:
        encoders = to_search_with(index, args.encoder, text=True, image=False)
        model = load_model(args.vlm, args.quantize)
        answer = answer_question(
            index, args.question, encoders, model, k=args.k, rule=args.rule, options=options
        )
    if args.json:
        cited = [
            {
                "number": c.number,
                "path": c.hit.payload["path"],
                "score": c.hit.score,
                "answer": c.answer,
                "supports": c.supports,
            }
            for c in answer.citations
        ]
        print_json(
            {"question": args.question, "answer": answer.text, "rule": answer.rule, "citations": cited}
        )
        return 0
    sys.stdout.write(f"{answer.text}\n\n({answer.rule})\n")
    for c in answer.citations:
        mark = "supports" if c.supports else "against"
        sys.stdout.write(
            f"[{c.number}] {c.hit.score:.4f}  {shown(c.hit.payload['path'])}  {c.answer!r} ({mark})\n"
        )
    return 0
