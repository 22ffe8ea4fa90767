"""Which encoders a sync of an index needs, and loading those of any index."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import UsageError

if TYPE_CHECKING:
    from vlmkit.encoders.base import VisionEncoder
    from vlmkit_retrieval.encoders import Encoder
    from vlmkit_retrieval.manifest import EncoderEntry, Manifest

# What may stand before "=": no path, no FAMILY:WEIGHTS.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# As of `vlmkit train --share-limit`, in gigabytes.
_SHARE_LIMIT = 20.0


@dataclass(frozen=True)
class Named:
    """A loaded encoder, and how an index loads it again.

    Attributes:
        encoder: Of any kind.
        reference: A run, `FAMILY:WEIGHTS`, a checkpoint, a language; None where the index knows it.
        name: In the index; None for the encoder's own.
    """

    encoder: Encoder
    reference: str | None
    name: str | None = None


def to_sync_with(args: argparse.Namespace) -> list[Named]:
    """The encoders that `vlmkit index sync` names, or all that the index remembers.

    Raises:
        UsageError: None is named, and the index is new or knows none.
    """
    from vlmkit_retrieval.manifest import MANIFEST, Manifest

    known = Manifest.load(Path(args.index)) if (Path(args.index) / MANIFEST).exists() else None
    if not (args.encoder or args.text_encoder or args.bm25 or args.patches):
        if known is None:
            raise UsageError(
                "the index is new; name the encoder that fills it: --encoder RUN or FAMILY:WEIGHTS"
            )
        found = _all_of(known)
    else:
        found = _named(args, known)
    return found if args.share is None else [_shared(one, Path(args.share)) for one in found]


def _shared(one: Named, share: Path) -> Named:
    """An image encoder that looks into a training's directory first; others as they are."""
    from vlmkit.encoders.base import VisionEncoder
    from vlmkit.share.embedder import SharedEmbedder

    def tell(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    if not isinstance(one.encoder, VisionEncoder):
        return one
    return replace(one, encoder=SharedEmbedder(one.encoder, share, _SHARE_LIMIT, tell))


def _all_of(known: Manifest) -> list[Named]:
    entries = {name: entry for name, entry in known.encoders.items() if can_be_loaded(entry)}
    if not entries:
        raise UsageError(
            "the index knows no encoder; name the one that fills it: --encoder RUN or FAMILY:WEIGHTS"
        )
    load = Loader()
    return [Named(load.remembered(name, entry), None, name) for name, entry in entries.items()]


def _named(args: argparse.Namespace, known: Manifest | None) -> list[Named]:
    load, found = Loader(), []
    images = _distinct(map(named_reference, args.encoder))
    found += [Named(load.image(reference), reference, name) for name, reference in images]
    for number, (stated, text) in enumerate(map(named_reference, args.text_encoder), start=1):
        own = stated or ("text" if number == 1 else f"text-{number}")
        found.append(Named(load.of_kind("text", text, own), text, stated))
    if args.bm25:
        found.append(Named(load.of_kind("terms", args.language, "bm25"), args.language))
    if args.patches:
        entries = [] if known is None else list(known.encoders.items())
        images = images or [(name, e.reference) for name, e in entries if e.kind == "image" and e.reference]
        if not images:
            raise UsageError("--patches are of an image encoder; name it: --encoder RUN or FAMILY:WEIGHTS")
        for name, reference in images:
            patches = load.of_kind("patches", reference, "")
            found.append(Named(patches, reference, None if name is None else f"{name}-patches"))
    return found


def named_reference(text: str) -> tuple[str | None, str]:
    """The parts of `NAME=RUN`, the first None where no name is given.

    A folder that is there is a folder, with `=` in its name too (`runs/lr=0.1`).
    """
    name, equals, reference = text.partition("=")
    if not equals or Path(text).is_dir() or not _NAME.fullmatch(name):
        return None, full_reference(text)
    if not reference:
        raise UsageError(f"{text} names no encoder; give NAME=RUN or NAME=FAMILY:WEIGHTS")
    return name, full_reference(reference)


def _distinct(named: Iterable[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    """Refuse one name for two encoders before any of them is loaded."""
    found = list(named)
    names = [name for name, _ in found if name is not None]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"--encoder {twice[0]}=... is given twice; give each encoder a name of its own")
    return found


def full_reference(reference: str) -> str:
    """A folder is remembered by its full path, so that the index can be used from any folder."""
    return str(Path(reference).resolve()) if Path(reference).is_dir() else reference


def can_be_loaded(entry: EncoderEntry) -> bool:
    """Whether an index knows where an encoder is; one that was added in Python may have no reference."""
    return bool(entry.reference)


def best_device() -> str:
    """Where encoders run: on a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Loader:
    """Loads encoders; a tower that serves as image encoder and gives patches is loaded once."""

    def __init__(self) -> None:
        from vlmkit.cli.console import quiet_loading

        quiet_loading()
        self._device = best_device()
        self._towers: dict[str, VisionEncoder] = {}

    def image(self, reference: str) -> VisionEncoder:
        """An image encoder: a run's directory, or `FAMILY:WEIGHTS`."""
        from vlmkit.embedders import load_encoder

        if reference not in self._towers:
            self._towers[reference] = load_encoder(reference).to(self._device)
        return self._towers[reference]

    def of_kind(self, kind: Any, reference: str, name: str) -> Encoder:
        """An encoder of any kind."""
        from vlmkit.embedders import load_of_kind, load_text_encoder

        if kind == "image":
            return self.image(reference)
        if kind == "text":
            return load_text_encoder(reference, name).to(self._device)
        if kind == "patches":
            from vlmkit.encoders.patches import PatchEncoder

            return PatchEncoder(self.image(reference))
        return load_of_kind(kind, reference, name)

    def remembered(self, name: str, entry: EncoderEntry) -> Encoder:
        """An encoder of the index.

        Raises:
            UsageError: It is a folder that is gone.
        """
        if entry.kind in ("image", "patches"):
            self.still_there(entry.reference)
        elif (
            entry.kind == "text"
            and Path(entry.reference).is_absolute()
            and not Path(entry.reference).is_dir()
        ):
            raise UsageError(
                f"the index remembers the text encoder {entry.reference}, which is gone; give "
                f"--encoder {name}=DIR (to a sync: --text-encoder {name}=DIR)"
            )
        return self.of_kind(entry.kind, entry.reference, name)

    def still_there(self, reference: str) -> VisionEncoder:
        """An image encoder that the index remembers.

        Raises:
            UsageError: It is a folder that is gone.
        """
        if ":" not in reference and not Path(reference).is_dir():
            raise UsageError(
                f"the index remembers the encoder {reference}, which is gone; give --encoder RUN"
            )
        return self.image(reference)
