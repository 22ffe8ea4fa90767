"""An index and a training share what a frozen encoder computed."""

import numpy as np
import pytest

from vlmkit.embedders import load_encoder
from vlmkit.encoders.vit import ViT
from vlmkit.share.embedder import SharedEmbedder
from vlmkit_retrieval import Index


@pytest.fixture
def forwards(monkeypatch):
    """How often a ViT ran."""
    seen, forward = [], ViT.forward
    monkeypatch.setattr(ViT, "forward", lambda self, batch: seen.append(1) or forward(self, batch))
    return seen


@pytest.mark.parametrize("layout", ["square", "tiles"])
def test_its_vectors_are_the_encoders_own_bit_for_bit(tmp_path, noise, forwards, layout):
    encoder = ViT(16, 4, 16, depth=1, heads=2, embed_dim=8, layout=layout).eval()
    shared = SharedEmbedder(encoder, tmp_path / "share", 1.0, pytest.fail)
    images = [noise(n, (40, 20)) for n in range(3)]
    alone = np.concatenate([encoder.embed_images([image]) for image in images])
    for again in (False, True):
        forwards.clear()
        np.testing.assert_array_equal(shared.embed_images(images), alone)
        assert len(forwards) == (0 if again and layout == "square" else 3)
    assert (shared.name, shared.fingerprint, shared.embed_dim) == ("vit", encoder.fingerprint, 8)
    assert shared.embed_images([]).shape == (0, 8)


def test_an_index_takes_what_a_training_computed(tmp_path, make_recipe, train, stages, captioned, forwards):
    _, _, connector_only = stages
    stage = {**connector_only, "hflip": 0.0, "steps": 3}
    recipe = make_recipe("run", [stage], precision="fp32")
    run, _ = train(recipe, tmp_path / "share")
    encoder = load_encoder(run)
    assert forwards
    forwards.clear()
    shared = SharedEmbedder(encoder, tmp_path / "share", 1.0, pytest.fail)
    with Index.create_or_open(tmp_path / "i") as index:
        assert index.sync([captioned["folder"]], shared).embedded == 12
        stored = {point.id: point.vectors["vit"] for point in index.engine.scroll()}
    assert not forwards, "three steps of four samples were every image once"
    with Index.create_or_open(tmp_path / "j") as index:
        index.sync([captioned["folder"]], encoder)
        for point in index.engine.scroll():
            np.testing.assert_array_equal(point.vectors["vit"], stored[point.id])
    assert len(forwards) == 12
