"""The table of published checkpoints: complete, and read without a network."""

import pytest
import torch

from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.encoders.known import KNOWN, known_ids
from vlmkit.errors import UsageError

# Patches of a photo of 640 x 480 pixels, width, tokens in front, retrieval width: as published.
FACTS = {
    "openai/clip-vit-base-patch16": (196, 768, 1, 512),
    "openai/clip-vit-large-patch14": (256, 1024, 1, 768),
    "openai/clip-vit-large-patch14-336": (576, 1024, 1, 768),
    "google/siglip-base-patch16-224": (196, 768, 0, 768),
    "google/siglip-large-patch16-384": (576, 1024, 0, 1024),
    "google/siglip-so400m-patch14-224": (256, 1152, 0, 1152),
    "google/siglip-so400m-patch14-384": (729, 1152, 0, 1152),
    "google/siglip2-base-patch16-224": (196, 768, 0, 768),
    "google/siglip2-so400m-patch14-384": (729, 1152, 0, 1152),
    "google/siglip2-so400m-patch16-384": (576, 1152, 0, 1152),
    "google/siglip2-base-patch16-naflex": (252, 768, 0, 768),
    "google/siglip2-so400m-patch16-naflex": (252, 1152, 0, 1152),
    "facebook/dinov2-small": (256, 384, 1, 384),
    "facebook/dinov2-base": (256, 768, 1, 768),
    "facebook/dinov2-large": (256, 1024, 1, 1024),
    "facebook/dinov2-with-registers-small": (256, 384, 5, 384),
    "facebook/dinov2-with-registers-base": (256, 768, 5, 768),
    "facebook/dinov2-with-registers-large": (256, 1024, 5, 1024),
    "mistral-community/pixtral-12b": (1200, 1024, 0, 0),
    "Qwen/Qwen2.5-VL-3B-Instruct": (1564, 1280, 0, 0),
    "Qwen/Qwen2.5-VL-7B-Instruct": (1564, 1280, 0, 0),
    "Qwen/Qwen3-VL-4B-Instruct": (1200, 1024, 0, 0),
    "Qwen/Qwen3-VL-8B-Instruct": (1200, 1152, 0, 0),
}
# Millions of parameters of the vision halves, as the papers and model cards give them.
MILLIONS = {
    "openai/clip-vit-base-patch16": 86, "openai/clip-vit-large-patch14-336": 304,
    "google/siglip-base-patch16-224": 93, "google/siglip-so400m-patch14-384": 428,
    "google/siglip2-so400m-patch16-naflex": 428, "facebook/dinov2-small": 22,
    "facebook/dinov2-base": 86, "facebook/dinov2-with-registers-large": 304,
    "mistral-community/pixtral-12b": 400,
}  # fmt: skip


def built(name):
    """The encoder of a hub id without weights; tests have no network, so nothing was downloaded."""
    cls = encoder_class(KNOWN[name].family)
    with torch.device("meta"):
        return cls(**cls.resolve(weights=name))


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_id_is_described_without_a_network(name):
    encoder = built(name)
    spec = encoder.spec
    patches = sum(view.rows * view.cols for view in spec.views((640, 480)))
    assert (patches, spec.width, spec.prefix_tokens, spec.embed_dim) == FACTS[name]
    assert encoder.text_tower_ref == (name if KNOWN[name].text else None)
    # Towers that were trained inside a language model are read where it reads them.
    assert spec.layer == (-2 if spec.embed_dim else -1)
    if name in MILLIONS:
        millions = sum(p.numel() for p in encoder.parameters()) / 1e6
        assert millions == pytest.approx(MILLIONS[name], rel=0.02)


def test_an_option_that_is_given_wins():
    resolved = encoder_class("clip").resolve(
        weights="openai/clip-vit-large-patch14-336", layout="pad", layer=-1
    )
    assert (resolved["layout"], resolved["layer"]) == ("pad", -1)
    large = encoder_class("dinov2").resolve(weights="facebook/dinov2-base", image_size=336)
    assert (large["image_size"], "shortest_edge" in large) == (336, False)


def test_a_folder_of_that_name_comes_first(clip_folder, tmp_path, monkeypatch):
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai/clip-vit-base-patch16").symlink_to(clip_folder)
    monkeypatch.chdir(tmp_path)
    resolved = encoder_class("clip").resolve(weights="openai/clip-vit-base-patch16")
    assert resolved["vision_config"]["hidden_size"] == 32


def test_a_known_id_of_another_family_is_refused():
    with pytest.raises(UsageError, match="for the encoder 'clip'; 'dinov2' takes such as facebook/dinov2"):
        encoder_class("dinov2").resolve(weights="openai/clip-vit-base-patch16")


def test_every_id_belongs_to_a_family():
    assert {known.family for known in KNOWN.values()} <= set(ENCODERS)
    assert sorted(name for family in ENCODERS for name in known_ids(family)) == sorted(KNOWN)
