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
    "facebook/dinov3-vits16-pretrain-lvd1689m": (196, 384, 5, 384),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": (196, 768, 5, 768),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": (196, 1024, 5, 1024),
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": (49, 768, 0, 768),
    "facebook/dinov3-convnext-small-pretrain-lvd1689m": (49, 768, 0, 768),
    "facebook/dinov3-convnext-base-pretrain-lvd1689m": (49, 1024, 0, 1024),
    "facebook/dinov3-convnext-large-pretrain-lvd1689m": (49, 1536, 0, 1536),
    "facebook/vit-mae-base": (196, 768, 1, 768),
    "facebook/vit-mae-large": (196, 1024, 1, 1024),
    "facebook/vit-mae-huge": (256, 1280, 1, 1280),
    "microsoft/beit-base-patch16-224": (196, 768, 1, 768),
    "microsoft/beit-base-patch16-384": (576, 768, 1, 768),
    "microsoft/beit-large-patch16-224": (196, 1024, 1, 1024),
    "google/vit-base-patch16-224": (196, 768, 1, 768),
    "google/vit-base-patch16-224-in21k": (196, 768, 1, 768),
    "google/vit-base-patch16-384": (576, 768, 1, 768),
    "google/vit-large-patch16-224": (196, 1024, 1, 1024),
    "facebook/deit-small-patch16-224": (196, 384, 1, 384),
    "facebook/deit-base-patch16-224": (196, 768, 1, 768),
    "facebook/deit-tiny-distilled-patch16-224": (196, 192, 2, 192),
    "facebook/deit-small-distilled-patch16-224": (196, 384, 2, 384),
    "facebook/deit-base-distilled-patch16-224": (196, 768, 2, 768),
    "microsoft/swin-tiny-patch4-window7-224": (49, 768, 0, 768),
    "microsoft/swin-small-patch4-window7-224": (49, 768, 0, 768),
    "microsoft/swin-base-patch4-window7-224": (49, 1024, 0, 1024),
    "microsoft/swin-base-patch4-window12-384": (144, 1024, 0, 1024),
    "microsoft/swinv2-tiny-patch4-window8-256": (64, 768, 0, 768),
    "microsoft/swinv2-small-patch4-window8-256": (64, 768, 0, 768),
    "microsoft/swinv2-base-patch4-window8-256": (64, 1024, 0, 1024),
    "facebook/convnext-tiny-224": (49, 768, 0, 768),
    "facebook/convnext-small-224": (49, 768, 0, 768),
    "facebook/convnext-base-224": (49, 1024, 0, 1024),
    "facebook/convnextv2-tiny-1k-224": (49, 768, 0, 768),
    "facebook/convnextv2-base-22k-224": (49, 1024, 0, 1024),
    "facebook/convnextv2-large-22k-224": (49, 1536, 0, 1536),
    "facebook/sam-vit-base": (4096, 256, 0, 0),
    "facebook/sam-vit-large": (4096, 256, 0, 0),
    "facebook/sam-vit-huge": (4096, 256, 0, 0),
    "OpenGVLab/InternVL3-1B-hf": (1024, 1024, 1, 1024),
    "OpenGVLab/InternVL3-2B-hf": (1024, 1024, 1, 1024),
    "OpenGVLab/InternVL3-8B-hf": (1024, 1024, 1, 1024),
    "apple/aimv2-large-patch14-224": (256, 1024, 0, 0),
    "apple/aimv2-large-patch14-224-lit": (256, 1024, 0, 1024),
    "mistral-community/pixtral-12b": (1200, 1024, 0, 0),
    "Qwen/Qwen2.5-VL-3B-Instruct": (1564, 1280, 0, 0),
    "Qwen/Qwen2.5-VL-7B-Instruct": (1564, 1280, 0, 0),
    "Qwen/Qwen3-VL-4B-Instruct": (1200, 1024, 0, 0),
    "Qwen/Qwen3-VL-8B-Instruct": (1200, 1152, 0, 0),
}
# The families of which the last hidden state is read, where nothing else is said.
LAST = (
    "dinov3_convnext",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "sam_vit",
    "internvit",
    "pixtral",
    "qwen2_5_vl",
    "qwen3_vl",
)
# Millions of parameters of the vision halves, as the papers and model cards give them.
MILLIONS = {
    "openai/clip-vit-base-patch16": 86, "openai/clip-vit-large-patch14-336": 304,
    "google/siglip-base-patch16-224": 93, "google/siglip-so400m-patch14-384": 428,
    "google/siglip2-so400m-patch16-naflex": 428, "facebook/dinov2-small": 22,
    "facebook/dinov2-base": 86, "facebook/dinov2-with-registers-large": 304,
    "facebook/dinov3-vits16-pretrain-lvd1689m": 21.6, "facebook/dinov3-vitl16-pretrain-lvd1689m": 303,
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": 27.8, "facebook/vit-mae-huge": 631,
    "google/vit-base-patch16-224": 86, "facebook/deit-tiny-distilled-patch16-224": 5.5,
    "microsoft/swin-base-patch4-window7-224": 86.7, "microsoft/swinv2-tiny-patch4-window8-256": 27.6,
    "facebook/convnext-base-224": 87.6, "facebook/convnextv2-base-22k-224": 87.7,
    "facebook/sam-vit-base": 89.7, "facebook/sam-vit-huge": 637,
    "OpenGVLab/InternVL3-1B-hf": 304, "apple/aimv2-large-patch14-224-lit": 309,
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
    assert spec.layer == (-1 if KNOWN[name].family in LAST else -2)
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
