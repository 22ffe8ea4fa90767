"""The main job on real data, as `make quickstart` runs it: each command is printed before it runs."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vlmkit.cli import main

if TYPE_CHECKING:
    from vlmkit.data.sample import Sample
    from vlmkit_retrieval import Index
    from vlmkit_retrieval.types import Embedder

RUN, INDEX, GALLERY = "runs/quickstart", "indexes/quickstart", "gallery"
QUESTION = "what color is the shape?"


def quickstart() -> int:
    """Train, ask, fill an index, search it, answer from it; then say what was made.

    Returns:
        0, or the exit code of the first command that failed.
    """
    console = Console()
    began = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    image = str(Path(GALLERY) / "0.png")
    fill_gallery(Path(GALLERY))
    commands = [
        ["train", "recipes/quickstart.yaml", "--resume"],
        ["ask", RUN, image, QUESTION],
        ["index", "sync", INDEX, GALLERY, "--encoder", RUN],
        ["search", INDEX, "a red triangle", "-k", "3"],
        ["search", INDEX, "--image", image, "-k", "3"],
        ["rag", INDEX, "is there a teal shape?", "--vlm", RUN, "-k", "3"],
    ]
    for command in commands:
        console.print(f"\n[bold]$ vlmkit {shlex.join(command)}[/bold]", highlight=False, soft_wrap=True)
        code = main(command)
        if code:
            return code
    console.print(f"\n{found_by_text()}", highlight=False, soft_wrap=True)
    minutes = (time.perf_counter() - began) / 60
    console.print(summary(minutes), highlight=False, soft_wrap=True)
    return 0


def fill_gallery(folder: Path) -> None:
    """Copy the 1,000 test images of easy-VQA, which no training step has seen, to a folder of their own."""
    from vlmkit.data.formats import DATA_FORMATS

    folder.mkdir(exist_ok=True)
    for sample in DATA_FORMATS["easy_vqa"](split="test"):
        source = sample.images[0]
        assert isinstance(source, Path)
        if not (folder / source.name).exists():
            shutil.copy2(source, folder / source.name)


def found_by_text() -> str:
    """precision@10 of text search in the quickstart's index, in words."""
    from vlmkit.data.formats import DATA_FORMATS
    from vlmkit.embedders import load_encoder
    from vlmkit_retrieval import Index

    with Index.open(INDEX) as index:
        samples = DATA_FORMATS["easy_vqa"](split="test")
        precision, queries, gallery = precision_at_10(index, load_encoder(RUN), samples)
    return (
        f"Text search: precision@10 is {precision:.3f} over {queries} queries such as 'a red triangle'\n"
        f"({gallery} test images whose colour and shape are both known)."
    )


def precision_at_10(index: Index, encoder: Embedder, samples: Sequence[Sample]) -> tuple[float, int, int]:
    """Share of the first ten labelled hits that have the colour and shape that were asked for.

    Args:
        index: Holds the images of `samples` under their file names.
        encoder: The index's.
        samples: Labelled by their full caption ("a red triangle"); those without one are not counted.

    Returns:
        Mean over the queries, number of queries, number of labelled images.
    """
    labels = {Path(str(s.images[0])).name: s.captions[0] for s in samples if len(s.captions) == 3}
    queries = sorted(set(labels.values()))
    shares = []
    for query in queries:
        relevant = sum(label == query for label in labels.values())
        hits = index.search(text=query, embedder=encoder, k=len(samples))
        found = [labels[n] for n in (Path(h.payload["path"]).name for h in hits) if n in labels]
        depth = min(10, relevant)
        shares.append(sum(label == query for label in found[:depth]) / depth)
    return sum(shares) / len(shares), len(queries), len(labels)


def summary(minutes: float) -> str:
    """What was made and what to try next."""
    return f"""
Done in {minutes:.1f} minutes. You have now:
  {RUN}     a ViT, an MLP connector and a small Llama, trained from scratch;
                      report.json: its score, curves.png: its losses
  {INDEX}  the images of {GALLERY}/, found by the same ViT
Try next (vlmkit is in .venv/bin):
  vlmkit ask {RUN} {GALLERY}/7.png "is there a circle?" --json
  vlmkit ask {RUN} {GALLERY}/7.png "what shape is present?" --quantize nf4
  vlmkit search {INDEX} "a yellow circle"
  vlmkit rag {INDEX} "is there a brown rectangle?" --vlm {RUN}
  vlmkit plan recipes/quickstart.yaml model.connector.pool=1"""


if __name__ == "__main__":
    raise SystemExit(quickstart())
