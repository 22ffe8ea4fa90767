"""The main job, shortened: it learns, it finds, and it answers as brute force would."""

import json

import pytest
from PIL import Image

from vlmkit import VLM, load_encoder
from vlmkit.data.formats import DATA_FORMATS
from vlmkit.quickstart import precision_at_10
from vlmkit_retrieval import Index, answer_question

COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@pytest.fixture(scope="module")
def model(home):
    return VLM.from_pretrained(home / "runs/quickstart").eval()


@pytest.fixture(scope="module")
def encoder(home):
    return load_encoder(home / "runs/quickstart")


def test_answers_far_better_than_blind(home):
    report = json.loads((home / "runs/quickstart/report.json").read_text())
    assert report["exact_match"]["all"] >= 0.93
    assert report["exact_match"]["yes/no"] >= 0.9
    # The questions alone give away about 67 %, most of it on yes/no.
    assert report["blind"]["all"] <= 0.75
    assert report["blind"]["shape"] <= 0.5


def test_text_finds_images_after_the_language_model_was_trained(home, index, encoder):
    samples = DATA_FORMATS["easy_vqa"](split="test", limit=300)
    with Index.open(index) as opened:
        precision, queries, gallery = precision_at_10(opened, encoder, samples)
    assert precision >= 0.9
    assert queries == 24
    assert gallery > 200


def test_image_finds_itself_first(home, index, encoder):
    path = home / "gallery/17.png"
    with Index.open(index) as opened:
        hits = opened.search(image=Image.open(path), embedder=encoder, k=3)
    assert hits[0].payload["path"].endswith("17.png")
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)


def test_retrieval_answers_existence_as_brute_force_over_the_gallery_does(home, encoder, model, tmp_path):
    """A gallery without red and without circles, so that the true answers are of both kinds."""
    samples = DATA_FORMATS["easy_vqa"](split="test", limit=300)
    kept = [
        s
        for s in samples
        if len(s.captions) == 3 and "red" not in s.captions[0] and "circle" not in s.captions[0]
    ]
    folder = tmp_path / "some"
    folder.mkdir()
    for sample in kept[:80]:
        (folder / sample.images[0].name).write_bytes(sample.images[0].read_bytes())
    pictures = [Image.open(p).convert("RGB") for p in sorted(folder.iterdir())]
    questions = [f"is there a {c} shape?" for c in COLOURS] + [f"is there a {s}?" for s in SHAPES]
    with Index.create_or_open(tmp_path / "index") as opened:
        opened.sync([folder], encoder)
        found = {q: answer_question(opened, q, encoder, model, k=8).text for q in questions}
    brute = {q: "yes" if "yes" in model.ask_each(pictures, q) else "no" for q in questions}
    assert {"yes", "no"} == set(brute.values())
    assert found == brute


def test_the_index_refuses_another_encoder(index, encoder):
    from vlmkit_retrieval import RetrievalError

    other = load_encoder_with_other_weights(encoder)
    with Index.open(index) as opened, pytest.raises(RetrievalError, match=encoder.fingerprint[:8]):
        opened.search(text="a red triangle", embedder=other, k=3)


def load_encoder_with_other_weights(encoder):
    import copy

    import torch

    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-3
    return other
