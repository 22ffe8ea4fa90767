"""timm's models as encoders, against timm itself: its preprocessing, its blocks, its embedding."""

import json
from functools import partial
from itertools import pairwise

import pytest
import torch

from vlmkit.encoders import timm_config
from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.timm_model import statement
from vlmkit.encoders.timm_tower import KNOWN_TIMM, TimmEncoder
from vlmkit.errors import UsageError

# Cuts whose margins are no odd multiple of 1.5: see test_timm_pixels.py.
SIZES = [(80, 60), (60, 120), (90, 90)]
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4}
FAST = {"layers": [1, 1, 1, 1], "embed_dims": [8, 16, 32, 64]}
SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 3}
COAT = {"depths": [1, 1, 2, 1], "embed_dim": [16, 32, 64, 128], "stem_width": [8, 16]}
NEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
# Name, arguments, side; then what must be found: tokens in front, (width, stride) of each level, width of the
# pooled vector. All blocks of a plain tower are alike.
PLAIN = {
    "registers": ("vit_small_patch16_224.augreg_in21k", {**VIT, "reg_tokens": 3}, 40, 4),
    "deit": ("deit_tiny_distilled_patch16_224.fb_in1k", VIT, 40, 2),
    "eva02": ("eva02_tiny_patch14_224.mim_in22k", VIT, 40, 1),
    "beit": ("beitv2_base_patch16_224.in1k_ft_in22k", VIT, 40, 1),
    "siglip": ("vit_base_patch16_siglip_224.webli", VIT, 40, 0),
    "dinov2": ("vit_small_patch14_reg4_dinov2.lvd142m", VIT, 40, 5),
    "dinov3": ("vit_small_patch16_dinov3.lvd1689m", {**VIT, "num_heads": 2}, 40, 5),
}
STAGES = {
    "fastvit": ("fastvit_t8.apple_in1k", FAST, 96, [(8, 4), (16, 8), (32, 16), (64, 32)], 128),
    "mobileclip": ("fastvit_mci0.apple_mclip", FAST, 128, [(8, 4), (16, 8), (32, 16), (64, 32)], 128),
    "coatnet": ("coatnet_0_rw_224.sw_in1k", COAT, 96, [(16, 2), (16, 4), (32, 8), (64, 16), (128, 32)], 128),
    "swin": ("swin_tiny_patch4_window7_224.ms_in22k", SWIN, 96, [(16, 4), (32, 8), (64, 16), (128, 32)], 128),
    "convnext": ("convnext_tiny.fb_in22k", NEXT, 96, [(8, 4), (16, 8), (24, 16), (32, 32)], 32),
}
CASES = {**PLAIN, **STAGES}


def options(case):
    name, model_args, side = CASES[case][:3]
    return {"model": name, "model_args": model_args, "image_size": side}


def rough(tower, shake):
    """Weights that matter; so do the statistics of batch norms, whose gains lie around one."""
    shake(tower)
    generator = torch.Generator().manual_seed(1)
    for norm in tower.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data += 1
            norm.running_mean.copy_(0.1 * torch.randn(norm.running_mean.shape, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    return tower


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def build(timm, kept, shake):
    """A function: a case to our encoder with rough weights; built once."""

    def make(case):
        if case not in kept:
            kept[case] = TimmEncoder.from_options(**options(case)).eval()
            rough(kept[case].tower, shake)
        return kept[case]

    return make


@pytest.fixture
def reference(timm, build):
    """A function: a case to timm's own model with the same weights."""

    def make(case, **more):
        name, model_args, side = CASES[case][:3]
        size = {"img_size": side} if timm.get_pretrained_cfg(name).fixed_input_size else {}
        model = timm.create_model(name, num_classes=0, **{**model_args, **size, **more}).eval()
        model.load_state_dict(build(case).tower.state_dict())
        return model

    return make


@pytest.fixture
def transform(timm):
    """A function: a case to timm's own preprocessing of a picture."""

    def make(case):
        name, _, side = CASES[case][:3]
        stated = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        return timm.data.create_transform(**{**stated, "input_size": (3, side, side)}, is_training=False)

    return make


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


def modules_of(model):
    """Names of the blocks or stages, as timm lists them."""
    return [entry["module"] for entry in getattr(model.feature_info, "info", model.feature_info)]


@torch.no_grad()
def hooked(model, pixels):
    """Final features, what enters the first block, and what leaves each block or stage: none by our code."""
    entered, left = [], []
    names = modules_of(model)
    hooks = [model.get_submodule(names[0]).register_forward_pre_hook(lambda _, x: entered.append(x[0]))]
    for name in names:
        hooks.append(model.get_submodule(name).register_forward_hook(lambda _, x, y: left.append(y)))
    final = model.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    return final, entered[0], left


def note(ran, name, *_):
    ran.append(name)


def flat(state, case):
    """Patches as (T, V): prefix tokens off, or the grid row by row."""
    if case in PLAIN:
        return state[:, PLAIN[case][3] :].flatten(0, 1)
    return (state if case == "swin" else state.permute(0, 2, 3, 1)).flatten(0, 2)


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_tower_s_facts_are_found(build, case):
    _, _, side, prefix = PLAIN[case]
    encoder = build(case)
    found = {k: v for k, v in encoder.config["proved"].items() if k not in ("of", "sizes")}
    expected = {"kind": "blocks", "depth": 4, "prefix_tokens": prefix, "levels": [[32, 8]], "embed_dim": 32}
    assert found == expected
    spec = encoder.spec
    assert (spec.image_size, spec.patch_size, spec.width, spec.layer, spec.embed_dim) == (side, 8, 32, -2, 32)
    assert spec.prefix_tokens == prefix


@pytest.mark.parametrize("case", STAGES)
def test_the_facts_of_stages_are_found(build, case):
    levels, embed_dim = STAGES[case][3:]
    encoder = build(case)
    proved, spec = encoder.config["proved"], encoder.spec
    assert (proved["kind"], proved["levels"]) == ("stages", [list(level) for level in levels])
    assert (spec.width, spec.patch_size, spec.layer, spec.embed_dim) == (*levels[-1], -1, embed_dim)
    # Those without a table of positions are proved with a taller picture as well.
    assert len(proved["sizes"]) == (1 if case in ("swin", "coatnet") else 2)


@pytest.mark.parametrize("case", CASES)
def test_every_level_equals_timm_s(build, reference, transform, pictures, see, gap, changed, case):
    """From pictures, through timm's own preprocessing, read off its modules by hooks."""
    pixels = torch.stack([transform(case)(p) for p in pictures])
    _, entered, left = hooked(reference(case), pixels)
    below = [entered] if case in PLAIN else []
    for layer, state in enumerate(below + left):
        features = see(changed(build(case), layer=layer), pictures)
        assert gap(features.patches_TV, flat(state, case)) == 0, layer
        assert features.grids == [features.grids[0]] * len(pictures)
    states = [flat(state, case) for state in left]
    for one, other in pairwise(states):
        assert one.shape != other.shape or gap(one, other) > 0.1


@pytest.mark.parametrize("case", CASES)
def test_pooled_is_timm_s_embedding(build, reference, transform, pictures, see, gap, case):
    pixels = torch.stack([transform(case)(p) for p in pictures])
    model = reference(case)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert gap(see(build(case), pictures).pooled_BE, expected) == 0
    assert gap(expected[:1], expected[1:2]) > 1e-3


def test_a_projection_is_the_model_s_last_layer(timm, pictures, see, gap, shake):
    encoder = TimmEncoder.from_options(**options("mobileclip"), projection=20).eval()
    rough(encoder.tower, shake)
    with torch.no_grad():
        expected = encoder.tower(pixel_batch(encoder.spec, pictures).pixels_ICHW)
    features = see(encoder, pictures)
    assert encoder.spec.embed_dim == 20
    assert gap(features.pooled_BE, expected) == 0


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_needed_runs(build, pictures, see, changed, case):
    """Without the pooled vector nothing above the layer runs; with it every block runs once."""
    encoder = build(case)
    depth = encoder.config["proved"]["depth"]
    for layer in range(depth):
        lean = changed(encoder, layer=layer, pooled=False)
        ran = []
        for name in modules_of(lean.tower):
            lean.tower.get_submodule(name).register_forward_hook(partial(note, ran, name))
        features = see(lean, pictures[:1])
        # The embeddings are what enters block 1, which therefore runs.
        blocks = max(layer, 1) if case in PLAIN else layer + 1
        assert ran == modules_of(lean.tower)[:blocks]
        assert features.pooled_BE is None and lean.spec.embed_dim == 0


@pytest.mark.parametrize("case", CASES)
def test_an_image_does_not_depend_on_its_batch(build, pictures, see, gap, case):
    together = see(build(case), pictures)
    for i, picture in enumerate(pictures):
        alone = see(build(case), [picture])
        assert gap(alone.patches_TV, together.views()[i]) < 1e-5
        assert gap(alone.pooled_BE, together.pooled_BE[i : i + 1]) < 1e-5


@pytest.mark.parametrize("case", ["eva02", "registers", "swin", "fastvit"])
@pytest.mark.parametrize(
    "change",
    [
        {"layer": 1},
        {"mean": [0.3, 0.3, 0.3]},
        {"resample": "lanczos"},
        {"layout": "pad"},
        {"shortest_edge": 0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_mistake_is_seen(build, pictures, see, gap, changed, case, change):
    ours, right = see(changed(build(case), **change), pictures), see(build(case), pictures)
    same = ours.patches_TV.shape == right.patches_TV.shape
    assert not same or gap(ours.patches_TV, right.patches_TV) > 1e-3


@pytest.mark.parametrize("case", ["eva02", "dinov3", "swin", "coatnet"])
def test_a_stored_encoder_is_rebuilt_without_a_proof(build, pictures, see, monkeypatch, case):
    """On the meta device, as when a saved model is loaded: tables that are not stored are recomputed."""
    encoder = build(case)
    monkeypatch.setattr(timm_config, "prove", None)
    with torch.device("meta"):
        twin = TimmEncoder(**json.loads(json.dumps(encoder.config)))
    twin = twin.to_empty(device="cpu").eval()
    for buffer in twin.buffers():
        buffer.fill_(1)
    twin.load_state_dict(encoder.state_dict())
    twin.reset_buffers()
    assert twin.fingerprint == encoder.fingerprint
    assert torch.equal(see(twin, pictures).patches_TV, see(encoder, pictures).patches_TV)
    assert torch.equal(see(twin, pictures).pooled_BE, see(encoder, pictures).pooled_BE)


def test_a_change_of_what_is_proved_is_proved_again(build, changed):
    encoder = build("convnext")
    other = changed(encoder, image_size=128, shortest_edge=128)
    assert other.config["proved"]["of"]["image_size"] == 128
    assert other.spec.views((50, 60))[0].rows == 4
    with pytest.raises(UsageError, match="100 is not a multiple of stride 8"):
        changed(encoder, image_size=100, shortest_edge=100, layer=1)


def test_the_proof_leaves_the_random_state_alone(timm):
    timm_config._proved.cache_clear()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TimmEncoder.resolve(**TimmEncoder.tiny_options())
    assert torch.equal(torch.rand(3), expected)


def test_absent_options_are_timm_s(timm):
    """Side, normalisation, interpolation and crop of a published model, as its card states them."""
    spec = TimmEncoder(model="convnext_atto.d2_in1k").spec
    assert (spec.image_size, spec.patch_size, spec.width, spec.embed_dim) == (224, 32, 320, 320)
    cut = {"type": "crop", "rounded": True}
    assert (spec.layout, spec.shortest_edge, spec.resample) == (cut, 256, "bicubic")
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("weights", KNOWN_TIMM)
def test_known_ids_are_published(timm, weights):
    cfg = statement(weights.removeprefix("timm/"))
    assert cfg["hf_hub_id"] == weights


def test_the_rest_of_the_suite_sees_no_torchvision(timm):
    """What it would break is what asks transformers."""
    from transformers.utils import is_timm_available, is_torchvision_available

    assert not is_timm_available() and not is_torchvision_available()
