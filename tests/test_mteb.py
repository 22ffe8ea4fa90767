"""mteb itself, offline, on tasks that are drawn here: a text to image retrieval, a text similarity.

mteb brings sentence-transformers and polars, so it is no part of the dev extra.
"""

from __future__ import annotations

import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlmkit.errors import UsageError
from vlmkit.mteb import MtebEncoder
from vlmkit_retrieval.eval import score

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "yellow": (230, 220, 20)}
SHAPES = ("circle", "square", "bar")


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class ColourEmbedder:
    """An image is its mean colour, a text the mean of the colours that it names: it knows no shapes."""

    name, fingerprint, embed_dim = "colour", "mean-rgb-1", 3

    def embed_images(self, images):
        assert all(image.mode == "RGB" for image in images)
        return unit([255.5 - np.asarray(image).reshape(-1, 3).mean(0) for image in images])

    def embed_text(self, texts):
        named = [[COLOURS[c] for c in COLOURS if c in text] or [(128, 128, 128)] for text in texts]
        return unit([256 - np.mean(colours, axis=0) for colours in named])


class Seeing(ColourEmbedder):
    def embed_text(self, texts):
        raise ValueError("no text tower")


def draw(colour, shape, size, mode="RGB"):
    image = Image.new("RGB", (32, 32), "white")
    box = {"circle": (4, 4, size, size), "square": (4, 4, size, size), "bar": (2, 10, 30, 10 + size // 3)}[
        shape
    ]
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=COLOURS[colour])
    return image.convert(mode)


def shapes():
    """Pictures by id, and what each text asks for: its colour and shape, and less so its colour alone."""
    pictures, qrels = {}, {}
    for colour in COLOURS:
        for shape in SHAPES:
            for size in (14, 22, 28):
                pictures[f"{colour}-{shape}-{size}"] = draw(
                    colour, shape, size, "RGBA" if size == 14 else "RGB"
                )
            qrels[f"a {colour} {shape}"] = {
                f"{colour}-{other}-{size}": 2 if other == shape else 1
                for other in SHAPES
                for size in (14, 22, 28)
            }
    return pictures, qrels


@pytest.fixture
def mteb(monkeypatch):
    """mteb, where no connection can be made."""
    package = pytest.importorskip("mteb")

    def refuse(*address):
        raise AssertionError(f"a connection to {address[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return package


STATED = {
    "description": "drawn shapes", "reference": None, "dataset": {"path": "local", "revision": "1"},
    "eval_splits": ["test"], "eval_langs": ["eng-Latn"], "date": ("2026-01-01", "2026-01-01"), "dialect": [],
    "domains": [], "task_subtypes": [], "license": "cc0-1.0", "annotations_creators": "derived",
    "sample_creation": "created", "bibtex_citation": "",
}  # fmt: skip


def retrieval_task(pictures, qrels):
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    class DrawnShapes(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="DrawnShapes", type="Any2AnyRetrieval", category="t2i", modalities=["text", "image"],
            main_score="ndcg_at_10", **STATED,
        )  # fmt: skip

        def load_data(self, num_proc=None, **options):
            data = RetrievalSplitData(
                queries=Dataset.from_dict({"id": list(qrels), "text": list(qrels)}),
                corpus=Dataset.from_dict({"id": list(pictures), "image": list(pictures.values())}),
                relevant_docs=qrels,
                top_ranked=None,
            )
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return DrawnShapes()


def similarity_task(rows):
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class ColourWords(AbsTaskSTS):
        metadata = TaskMetadata(
            name="ColourWords", type="STS", category="t2t", modalities=["text"],
            main_score="cosine_spearman", **STATED,
        )  # fmt: skip
        min_score, max_score = 0, 1

        def load_data(self, num_proc=None, **options):
            columns = dict(zip(("sentence1", "sentence2", "score"), zip(*rows, strict=True), strict=True))
            self.dataset = DatasetDict({"test": Dataset.from_dict({k: list(v) for k, v in columns.items()})})
            self.data_loaded = True

    return ColourWords()


def on_white(picture):
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")


def main_scores(mteb, task, encoder):
    result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert result.model_name == "vlmkit/colour" and result.model_revision == "mean-rgb-1"
    return result.task_results[0].scores["test"][0]


def test_text_to_image_retrieval_scores_as_ours(mteb):
    pictures, qrels = shapes()
    encoder = ColourEmbedder()
    found = main_scores(mteb, retrieval_task(pictures, qrels), MtebEncoder(encoder))
    seen = encoder.embed_images([on_white(picture) for picture in pictures.values()])
    order = np.argsort(-encoder.embed_text(list(qrels)) @ seen.T, kind="stable")
    names = list(pictures)
    run = {query: [names[place] for place in row] for query, row in zip(qrels, order, strict=True)}
    ours = score(qrels, run, 10).means()
    assert 0.3 < ours["ndcg@10"] < 1
    theirs = {name: found[f"{name}_at_10"] for name in ("ndcg", "recall", "map", "mrr")}
    assert theirs == pytest.approx({name: ours[f"{name}@10"] for name in theirs}, abs=1e-5)


def test_text_similarity(mteb):
    rows = [
        ("red", "a red one", 1.0),
        ("red", "green", 0.0),
        ("blue", "blue, blue", 0.9),
        ("yellow", "blue", 0.1),
    ]
    found = main_scores(mteb, similarity_task(rows), MtebEncoder(ColourEmbedder()))
    assert found["cosine_spearman"] > 0.7


def test_mteb_takes_it_for_an_encoder(mteb):
    from mteb.models import EncoderProtocol

    encoder = MtebEncoder(ColourEmbedder(), "me/colour")
    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.name == "me/colour"
    assert encoder.mteb_model_meta.modalities == ["text", "image"]
    assert MtebEncoder(Seeing()).mteb_model_meta.modalities == ["image"]
    with pytest.raises(ValueError, match="none overlap with task ColourWords"):
        main_scores(mteb, similarity_task([("a", "b", 0.0), ("a", "a", 1.0)]), MtebEncoder(Seeing()))


class Task:
    name = "Odd"


def test_rows_of_both_kinds_and_what_cannot_be_embedded(mteb):
    encoder, picture = MtebEncoder(ColourEmbedder()), draw("red", "square", 28)
    both = encoder.encode([{"text": ["blue", "red"], "image": [picture] * 2}], task_metadata=Task)
    parts = [ColourEmbedder().embed_text(["blue", "red"]), ColourEmbedder().embed_images([picture] * 2)]
    assert np.allclose(both, unit(parts[0] + parts[1]))
    assert encoder.encode([], task_metadata=Task).shape == (0, 3)
    for batch, says in (
        ({"audio": [1]}, "neither texts nor images .* audio"),
        ({"image": [None]}, "without an image"),
    ):
        with pytest.raises(UsageError, match=f"Odd .*{says}"):
            encoder.encode([batch], task_metadata=Task)
    with pytest.raises(UsageError, match="organization/model"):
        MtebEncoder(ColourEmbedder(), "colour")


def test_without_mteb_the_extra_is_named(python):
    done = python(
        "import sys; sys.modules['mteb'] = None\n"
        "from types import SimpleNamespace\nfrom vlmkit.mteb import MtebEncoder\n"
        "try:\n    MtebEncoder(SimpleNamespace(name='e'))\n"
        "except Exception as e:\n    print(type(e).__name__, e)"
    )
    assert done.stdout.strip() == "MissingExtraError mteb is not installed; do: pip install 'vlmkit[mteb]'"
