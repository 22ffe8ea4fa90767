"""Check that an encoder keeps the promises of the contract: a table of figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmkit.testing import Report

# Twins that have a retrieval vector only if asked for one, which is checked too; and who else decides on it.
WITH_VECTOR: dict[str, dict[str, Any]] = {"vit": {"embed_dim": 12}}
VECTOR_OPTIONS = {"embed_dim", "projection", "pooled", "text_tower"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vlmkit encoder`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check a class with tiny random weights, or given weights")
    check.add_argument(
        "encoder",
        metavar="NAME|CLASS|RUN|FAMILY:WEIGHTS",
        help="a name from `list encoders`, package.module:Class, a run's directory, or published weights",
    )
    check.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of the encoder, as in a recipe"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 says that a check failed."""
    from vlmkit.cli.console import print_json, quiet_loading
    from vlmkit.overrides import read_overrides

    quiet_loading()
    report = _check(args.encoder, read_overrides(args.overrides))
    if args.json:
        print_json(report.as_dict())
    else:
        sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


def _check(name: str, options: dict[str, Any]) -> Report:
    """Check what a name stands for."""
    from vlmkit.embedders import load_encoder
    from vlmkit.encoders import ENCODERS, encoder_class
    from vlmkit.testing import check_encoder

    family, _, weights = name.partition(":")
    if Path(name).is_dir():
        return check_encoder(load_encoder(name, **options))
    if family in ENCODERS and weights:
        return _check_weights(family, {**options, "weights": weights})
    if name in WITH_VECTOR and not options.keys() & VECTOR_OPTIONS:
        options = {**options, **WITH_VECTOR[name]}
    return check_encoder(encoder_class(name), options or None)


def _check_weights(family: str, options: dict[str, Any]) -> Report:
    """Published weights, against transformers' own model of them where it sees and gives the same."""
    from vlmkit.encoders import encoder_class
    from vlmkit.testing import check_encoder, transformers_reference
    from vlmkit.testing.references import why_none

    cls, why = encoder_class(family), why_none(options["weights"], family, options)
    images, texts = (None, None) if why else transformers_reference(options["weights"])
    return check_encoder(cls, options, reference=images, text_reference=texts, no_reference=why)
