"""The fingerprint: the same wherever vectors are the same, another wherever they may differ."""

import os
import subprocess
import sys

import pytest
import torch

from vlmkit.encoders.clip import CLIPEncoder
from vlmkit.encoders.vit import ViT

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4, "embed_dim": 12}


def twin(clip, **changes):
    """The encoder with the same weights and another configuration."""
    encoder = CLIPEncoder(**{**clip.config, **changes})
    encoder.load_state_dict(clip.state_dict())
    return encoder


def test_it_is_the_same_in_another_instance_and_mode(clip, clip_folder):
    assert CLIPEncoder.from_options(weights=str(clip_folder)).train().fingerprint == clip.fingerprint
    assert twin(clip).fingerprint == clip.fingerprint
    assert len(clip.fingerprint) == 32


def test_it_is_the_same_in_another_process(clip, clip_folder):
    code = (
        "from vlmkit.encoders.clip import CLIPEncoder\n"
        f"print(CLIPEncoder.from_options(weights={str(clip_folder)!r}).fingerprint)"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.strip() == clip.fingerprint, found.stderr


def test_where_the_text_tower_lies_does_not_matter(clip, edited):
    copy = edited("preprocessor_config.json")
    assert copy != clip.text_tower_ref
    assert twin(clip, text_tower=copy).fingerprint == clip.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"layer": -1},
        {"mean": [0.5, 0.4578275, 0.40821073]},
        {"std": [0.5, 0.26130258, 0.27577711]},
        {"layout": "pad"},
        {"resample": "bilinear"},
        {"text_tower": None},
    ],
)
def test_another_configuration_changes_it(clip, change):
    assert twin(clip, **change).fingerprint != clip.fingerprint


@pytest.mark.parametrize("field", ["hidden_act", "layer_norm_eps"])
def test_another_architecture_of_the_same_tensors_changes_it(clip, field):
    other = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}[field]
    changed = {**clip.config["vision_config"], field: other}
    assert twin(clip, vision_config=changed).fingerprint != clip.fingerprint


@pytest.mark.parametrize(
    "name", ["vision.visual_projection.weight", "vision.vision_model.embeddings.class_embedding"]
)
def test_one_weight_changes_it(clip, name):
    encoder = twin(clip)
    tensor = encoder.get_parameter(name).data.view(-1)
    tensor[-1] = torch.nextafter(tensor[-1], torch.tensor(9.0))
    assert encoder.fingerprint != clip.fingerprint


def test_one_weight_of_the_text_tower_changes_it(clip, edited):
    from safetensors.torch import load_file, save_file

    folder = edited("config.json")
    tensors = load_file(f"{folder}/model.safetensors")
    tensors["text_projection.weight"][0, 0] += 1e-3
    save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
    assert twin(clip, text_tower=folder).fingerprint != clip.fingerprint
    tensors["text_projection.weight"][0, 0] -= 1e-3
    tensors["visual_projection.weight"][0, 0] += 1.0
    tensors["text_projection.weight"].copy_(clip.text_tower()._model.text_projection.weight)
    save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
    assert twin(clip, text_tower=folder).fingerprint == clip.fingerprint


def test_rounding_changes_it_and_widening_does_not():
    torch.manual_seed(0)
    encoder = ViT(**TINY)
    exact = encoder.fingerprint
    rounded = encoder.bfloat16().fingerprint
    assert rounded != exact
    assert encoder.float().fingerprint == rounded


@pytest.mark.parametrize("change", ["optimizer", "load", "round trip", "submodule"])
def test_it_is_not_remembered_past_a_change(change):
    encoder = ViT(**TINY)
    before = encoder.fingerprint
    assert encoder.fingerprint == before
    if change == "optimizer":
        encoder.positions.sum().backward()
        torch.optim.AdamW([encoder.positions]).step()
    if change == "load":
        encoder.load_state_dict(ViT(**TINY).state_dict())
    if change == "round trip":
        encoder.bfloat16().float()
    if change == "submodule":
        encoder.blocks.bfloat16()
    assert encoder.fingerprint != before


@pytest.mark.parametrize(
    "change", [{"pool": "map"}, {"layer": 1}, {"layout": "crop"}, {"heads": 2}, {"embed_dim": 8}]
)
def test_a_vit_with_another_option_has_another_one(change):
    torch.manual_seed(0)
    encoder = ViT(**TINY)
    torch.manual_seed(0)
    assert ViT(**TINY).fingerprint == encoder.fingerprint
    torch.manual_seed(0)
    assert ViT(**{**TINY, **change}).fingerprint != encoder.fingerprint
