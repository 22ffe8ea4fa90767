"""What timm's models state is believed only where their outputs agree; real models that are refused."""

import sys

import pytest
import torch

from vlmkit.encoders.timm_model import build, import_timm
from vlmkit.encoders.timm_probe import prove
from vlmkit.encoders.timm_tower import TimmEncoder
from vlmkit.errors import MissingExtraError, UsageError, VlmkitError

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 2}
NEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
PLAIN, STAGES = ("vit_tiny_patch16_224", VIT, 32, 0), ("convnext_tiny.fb_in22k", NEXT, 96, 0)


@pytest.fixture
def tower(timm):
    """A function: what `build` takes to a model with the same random weights each time."""

    def make(*arguments):
        torch.manual_seed(0)
        return build(*arguments)

    return make


def wrapped(tower, change):
    """The model, with something else done to each level that it gives."""
    honest = tower.forward_intermediates

    def changed(*args, **kwargs):
        given = honest(*args, **kwargs)
        if isinstance(given, tuple):
            return given[0], [change(state) for state in given[1]]
        return [change(state) for state in given]

    tower.forward_intermediates = changed
    return tower


class Last(torch.nn.Module):
    """Prefix tokens behind the patches."""

    def forward(self, tokens):
        return torch.cat([tokens[:, 3:], tokens[:, :3]], dim=1)


def test_an_honest_model_is_proved(tower):
    assert prove("vit", tower(*PLAIN), 32, 0)["prefix_tokens"] == 3
    assert prove("convnext", tower(*STAGES), 96, 0)["levels"][-1] == [32, 32]


@pytest.mark.parametrize(
    ("arguments", "change"),
    [(PLAIN, "transpose"), (STAGES, "transpose"), (PLAIN, "flip"), (STAGES, "flip"), (PLAIN, "roll")],
)
def test_another_order_of_the_patches_is_refused(tower, arguments, change):
    """Columns first, from the right, or shifted by one position."""
    changes = {
        "transpose": lambda s: s.transpose(2, 3),
        "flip": lambda s: s.flip(3),
        "roll": lambda s: s.flatten(2).roll(1, dims=2).view_as(s),
    }
    with pytest.raises(
        UsageError, match=r"another position after block 1 most|does not move its own position"
    ):
        prove("liar", wrapped(tower(*arguments), changes[change]), arguments[2], 0)


def test_prefix_tokens_that_are_not_in_front_are_refused(tower):
    model = tower(*PLAIN)
    model.norm_pre = Last()
    with pytest.raises(UsageError, match=r"row 0, column 0 moves token 0 at the input of block 1 most"):
        prove("liar", model, 32, 0)


def test_a_wrong_number_of_prefix_tokens_is_refused(tower):
    model = tower(*PLAIN)
    model.num_prefix_tokens = 2
    with pytest.raises(UsageError, match=r"width, rows, columns are \(34, 4, 4\), stated are \(32, 4, 4\)"):
        prove("liar", model, 32, 0)


@pytest.mark.parametrize(("key", "value"), [("reduction", 16), ("num_chs", 24)])
def test_a_wrong_stride_or_width_is_refused(tower, key, value):
    model = tower(*STAGES)
    model.feature_info[1][key] = value
    level = prove("liar", model, 96, 0)["levels"][1]
    assert "width, rows, columns are (16, 12, 12), stated are" in level


def test_the_other_memory_format_is_refused(tower):
    model = wrapped(tower(*STAGES), lambda s: s.permute(0, 2, 3, 1))
    with pytest.raises(UsageError, match=r"width, rows, columns are \(24, 24, 8\), stated are \(8, 24, 24\)"):
        prove("liar", model, 96, 0)


def test_chance_in_the_forward_pass_is_refused(tower):
    model = tower("vit_tiny_patch16_224", {**VIT, "proj_drop_rate": 0.5}, 32, 0)
    model.train()
    with pytest.raises(UsageError, match="do not give the same final features"):
        prove("liar", model, 32, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tnt_s_legacy_patch16_224.in1k"}, "16 tokens enter block 1, for 14 x 14 patches"),
        ({"model": "crossvit_9_240.in1k"}, "forward_intermediates and forward_features do not give the same"),
        ({"model": "levit_128s.fb_dist_in1k"}, r"layer -1 is not proved .* 224 is not a multiple .*: \[0\]"),
        (
            {"model": "pit_ti_224.in1k", "layer": 0},
            r"are \(64, 27, 27\), stated are \(64, 28, 28\); possible",
        ),
        ({"model": "vit_base_patch16_sapiens2.fb"}, "3 channels and 1024 x 768 pixels; .* state image_size"),
        ({"model": "vit_tiny_patch16_224", "image_size": 40}, "40 is not a multiple of stride 16"),
        ({"model": "vit_tiny_patch16_224", "image_size": 32}, "2 x 2 positions are too few"),
        ({"model": "vit_tiny_patch16_224", "layer": 13}, "no layer 13; with depth 12: -13 to 12"),
        ({"model": "resnet18.a1_in1k", "image_size": 96, "layer": 5}, "no layer 5; it has 5 levels: -5 to 4"),
        ({"model": "resnet18"}, r"in 7 versions whose preprocessing differs; name one of resnet18.a1_in1k"),
        ({"model": "resnet18.a9_in1k"}, r"no tag 'a9_in1k' of resnet18 \(known: a1_in1k, "),
        ({"model": "vt_tiny_patch16_224"}, r"no model 'vt_tiny_patch16_224' \(near: vit_tiny_patch16_224"),
        ({"model": "vit_tiny_patch16_224", "model_args": {"deep": 3}}, "unexpected keyword argument 'deep'"),
        ({"model": "vit_tiny_patch16_224", "model_args": {"img_size": 3}}, "is stated by: image_size"),
        (
            {"model": "vit_tiny_patch16_224", "model_args": {"act_layer": torch.nn.GELU}},
            "must be plain values",
        ),
        (
            {"model": "vit_tiny_patch16_224", "image_size": 22.4},
            "found image_size 22.4; give a whole number of 1",
        ),
        (
            {"model": "vit_tiny_patch16_224", "projection": -1},
            "found projection -1; give a whole number of 0",
        ),
        ({}, "found no model and weights None; state model, such as"),
        (
            {"modle": "vit_tiny_patch16_224"},
            "unknown option of encoder 'timm': 'modle'; did you mean 'model'",
        ),
    ],
)
def test_what_cannot_be_proved_or_built_is_explained(timm, options, message):
    with pytest.raises(UsageError, match=message):
        TimmEncoder.from_options(**options)


def test_a_model_without_one_vector_an_image_is_taken_without_it(timm):
    tiny = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "global_pool": ""}
    options = {"model": "vit_tiny_patch16_224", "model_args": tiny, "image_size": 32}
    with pytest.raises(UsageError, match=r"gives no retrieval vector .* state pooled: false"):
        TimmEncoder.from_options(**options)
    encoder = TimmEncoder.from_options(**options, pooled=False)
    with pytest.raises(VlmkitError, match="no text tower"):
        encoder.embed_text(["a cat"])
    assert encoder.spec.embed_dim == 0


def test_a_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm is not installed; do: pip install 'vlmkit\[timm\]'"):
        import_timm()


def test_a_torchvision_of_another_torch_is_named(timm, monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    wanted = r"nms does not exist.* belongs to the installed torch .* pip install 'vlmkit\[timm\]'"
    with pytest.raises(VlmkitError, match=wanted):
        import_timm()


def test_an_old_timm_is_named(timm, monkeypatch):
    monkeypatch.setattr(timm, "__version__", "1.0.9")
    with pytest.raises(VlmkitError, match=r"timm 1\.0\.9 is too old; do: pip install -U"):
        import_timm()
