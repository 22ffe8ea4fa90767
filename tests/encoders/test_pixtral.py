"""Pixtral's tower against transformers: several sizes at once, with weights that matter."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    PixtralVisionConfig,
    PixtralVisionModel,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.packed_layers import rotate
from vlmkit.encoders.packed_views import axial_rope
from vlmkit.encoders.pixtral import PixtralEncoder
from vlmkit.errors import VlmkitError

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "image_size": 40, "patch_size": 8, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
}  # fmt: skip
SIZES = [(40, 32), (17, 40), (90, 30), (31, 77), (40, 40), (3, 9), (200, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shake):
    folder = tmp_path_factory.mktemp("pixtral")
    shake(PixtralVisionModel(PixtralVisionConfig(**VISION))).save_pretrained(folder)
    sizes = {"size": {"longest_edge": 40}, "patch_size": {"height": 8, "width": 8}}
    PixtralImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixtral(folder):
    return PixtralEncoder.from_options(weights=str(folder)).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def inputs(folder, pictures):
    return PixtralImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")


@pytest.fixture(scope="module")
def states(folder, inputs):
    """The hidden states of the reference: below the first block, and above each."""
    model = PixtralVisionModel.from_pretrained(folder, dtype="float32").eval()
    seen = []
    for layer in model.transformer.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        last = model(**inputs).last_hidden_state
    return [state[0] for state in [*seen, last]]


def test_the_checkpoint_is_no_identity(states):
    for below, above in pairwise(states):
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


def test_pixels_and_grids_equal_the_reference(pixtral, pictures, inputs):
    batch = pixel_batch(pixtral.spec, pictures)
    assert batch.sizes_I2.tolist() == [list(size) for size in inputs["image_sizes"]]
    assert len(set(map(tuple, batch.grids_I2.tolist()))) >= 5
    for ours, theirs, (height, width) in zip(batch.views(), inputs["pixel_values"], batch.sizes_I2):
        assert torch.equal(ours, theirs[:, :height, :width])


@pytest.mark.parametrize("layer", [-5, -2, -1])
def test_a_batch_of_several_sizes_equals_the_reference(folder, pictures, states, see, gap, layer):
    encoder = PixtralEncoder.from_options(weights=str(folder), layer=layer).eval()
    features = see(encoder, pictures)
    assert len(encoder.vision.transformer.layers) == 5 + layer
    assert gap(features.patches_TV, states[layer]) <= 3e-6
    assert features.pooled_BE is None


def test_each_picture_alone_is_the_same(pixtral, pictures, see, gap):
    alone = torch.cat([see(pixtral, [picture]).patches_TV for picture in pictures])
    assert gap(see(pixtral, pictures).patches_TV, alone) <= 3e-6


def swapped(x, rope):
    return rotate(x, tuple(torch.cat(half.chunk(2, -1)[::-1], -1) for half in rope))


def interleaved(x, rope):
    """Neighbouring channels turn together, as in the original weights before they were converted."""
    mixed = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return rotate(mixed, rope).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


@pytest.mark.parametrize("mistake", [swapped, interleaved, lambda x, rope: x])
def test_another_order_of_rotary_positions_is_seen(pixtral, pictures, states, see, gap, monkeypatch, mistake):
    monkeypatch.setattr("vlmkit.encoders.packed_layers.rotate", mistake)
    assert gap(see(pixtral, pictures).patches_TV, states[-1]) > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5, 0.5, 0.5]},
        {"resample": "bilinear"},
        {"vision_config": {**VISION, "hidden_act": "gelu"}},
        {"vision_config": {**VISION, "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}},
    ],
)
def test_a_mistake_is_seen(pixtral, pictures, states, see, gap, changed, change):
    assert gap(see(changed(pixtral, **change), pictures).patches_TV, states[-1]) > 5e-3


def test_rows_that_turn_as_columns_are_seen(pixtral, pictures, states, see, gap, monkeypatch):
    monkeypatch.setattr("vlmkit.encoders.pixtral.axial_rope", lambda grids, r, c: axial_rope(grids, c, r))
    assert gap(see(pixtral, pictures).patches_TV, states[-1]) > 1e-2


def test_the_whole_model_of_a_checkpoint_is_read(folder, tmp_path, pixtral, pictures, see, gap):
    """As published: a LLaVA-like model; the language model's tensors are left out."""
    text = {"model_type": "mistral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 20}
    vision = {**VISION, "model_type": "pixtral"}
    whole = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    tower = PixtralVisionModel.from_pretrained(folder, dtype="float32")
    whole.model.vision_tower.load_state_dict(tower.state_dict())
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    encoder = PixtralEncoder.from_options(weights=str(tmp_path), layer=-2).eval()
    assert encoder.spec.layout == {"type": "longest", "longest_edge": 40, "merge": 1}
    assert torch.equal(see(encoder, pictures).patches_TV, see(
        PixtralEncoder.from_options(weights=str(folder), layer=-2).eval(), pictures
    ).patches_TV)  # fmt: skip


def test_gradients_reach_every_parameter(pixtral, pictures, changed):
    encoder = changed(pixtral).train()
    encoder(pixel_batch(encoder.spec, pictures[:4])).patches_TV.square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_there_is_no_vector_and_that_is_said(pixtral, pictures):
    assert pixtral.embed_dim == 0
    with pytest.raises(VlmkitError, match="encoder 'pixtral' has no retrieval space: its tower has none"):
        pixtral.embed_images(pictures[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooled": True}, "pixtral: found pooled: true; "),
        ({"layer": 5}, "no layer 5; with depth 4"),
        ({"vision_config": {**VISION, "num_attention_heads": 16}}, "width that is no multiple of 4"),
        ({"image_size": 41}, "image_size 41 is not a multiple of 8 pixels"),
        ({"vision_config": None}, "give weights .such as mistral-community/pixtral-12b. or vision_config"),
        ({"vision_config": {"depth": 3}}, "unknown pixtral vision_config field 'depth'"),
        ({"weights": "google/siglip-base-patch16-224"}, "are for the encoder 'siglip'"),
    ],
)
def test_wrong_options_are_explained(options, message):
    given = options if "weights" in options else {"vision_config": VISION, **options}
    with pytest.raises(VlmkitError, match=message):
        PixtralEncoder.from_options(**given)


def test_an_image_processor_that_does_not_fit_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, "patch_size": 16}))
    with pytest.raises(VlmkitError, match=r"patch_size=16\) does not fit patches of 8 pixels"):
        PixtralEncoder.resolve(weights=str(tmp_path))
    assert PixtralEncoder.resolve(weights=str(tmp_path), layout="square")["layout"] == "square"


def test_what_the_checkpoint_states_is_taken(pixtral):
    spec = pixtral.spec
    assert (spec.mean, spec.std, spec.resample, spec.image_size) == (CLIP_MEAN, CLIP_STD, "bicubic", 40)
    assert spec.layout == {"type": "longest", "longest_edge": 40, "merge": 1}


def test_the_tiny_twin_is_built_and_runs(pictures, see):
    features = see(PixtralEncoder.from_options(**PixtralEncoder.tiny_options()), pictures)
    assert features.patches_TV.shape[1] == 32


def test_mistral_3_rounds_up_to_groups(folder, tmp_path):
    config = Mistral3Config(vision_config={**VISION, "model_type": "pixtral"}, spatial_merge_size=2)
    config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    encoder = PixtralEncoder(**PixtralEncoder.resolve(weights=str(tmp_path)))
    assert encoder.spec.layout == {"type": "longest", "longest_edge": 40, "merge": 2}
    assert [(view.rows, view.cols) for view in encoder.spec.views((40, 17))] == [(4, 6)]
