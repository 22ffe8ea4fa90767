"""The adapter for any vision model of transformers: what it finds is proved, the rest is refused."""

import json

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    LevitConfig,
    PvtConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTMSNConfig,
    YolosConfig,
)
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlmkit.encoders import any_transformers, encoder_class
from vlmkit.encoders.any_transformers import TransformersEncoder
from vlmkit.encoders.probe import probe
from vlmkit.encoders.processors_proof import proved_pixels
from vlmkit.errors import UsageError, VlmkitError

SIZES = [(90, 70), (33, 50), (64, 64)]
VIT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
# Families with a file of their own, and their layer for the model's last hidden state.
THIN = {
    "clip": -1, "siglip": -1, "dinov2": -1, "dinov3": -1, "hf_vit": -1, "deit": -1, "beit": -1, "aimv2": -1,
    "internvit": -1, "swin": -1, "swinv2": -1, "convnext": -1, "convnextv2": -1, "dinov3_convnext": -1,
    "sam_vit": -2,
}  # fmt: skip


def square(side):
    return ViTImageProcessorPil(size={"height": side, "width": side})


CASES = {
    "vit_msn": (ViTMSNConfig(**VIT), square(32), (1, 4, 8)),
    "yolos": (YolosConfig(**{**VIT, "image_size": [32, 32]}, num_detection_tokens=5), square(32), (1, 4, 8)),
    "resnet": (
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        ConvNextImageProcessorPil(size={"shortest_edge": 64}), (0, 8, 8),
    ),
    "pvt": (
        PvtConfig(
            image_size=128, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2]
        ),
        square(128), (1, 4, 32),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory, shake):
    folder = tmp_path_factory.mktemp("any")
    torch.manual_seed(0)
    shake(AutoModel.from_config(case[0])).save_pretrained(folder)
    case[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return TransformersEncoder.from_options(weights=str(folder)).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


def test_patches_and_vector_equal_the_reference(case, folder, encoder, pictures, see, gap):
    prefix, grid, stride = case[2]
    assert (encoder.spec.prefix_tokens, encoder.spec.patch_size) == (prefix, stride)
    pixels = case[1](pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = AutoModel.from_pretrained(folder, dtype="float32").eval()(pixels, output_hidden_states=True)
    state = out.hidden_states[-1]
    tokens = state if state.ndim == 3 else state.flatten(2).transpose(1, 2)
    features = see(encoder, pictures)
    assert gap(features.patches_TV, tokens[:, prefix : prefix + grid * grid].flatten(0, 1)) == 0
    assert features.grids == [(grid, grid)] * len(pictures)
    pooled = out.get("pooler_output")
    assert (features.pooled_BE is None) == (pooled is None) == (encoder.embed_dim == 0)
    assert pooled is None or gap(features.pooled_BE, pooled.flatten(1)) == 0


def test_a_saved_encoder_needs_no_probe(encoder, pictures, see, monkeypatch):
    def never(*_):
        raise AssertionError("probed")

    monkeypatch.setattr(any_transformers, "probe", never)
    twin = TransformersEncoder(**json.loads(json.dumps(encoder.config))).eval()
    twin.load_state_dict(encoder.state_dict())
    assert (twin.spec, twin.fingerprint) == (encoder.spec, encoder.fingerprint)
    assert torch.equal(see(twin, pictures).patches_TV, see(encoder, pictures).patches_TV)
    with torch.device("meta"):
        assert TransformersEncoder(**encoder.config).spec == encoder.spec
    with pytest.raises(AssertionError, match="probed"):
        TransformersEncoder(**{**encoder.config, "tokens": None})


@pytest.mark.parametrize(
    "change",
    [
        {"vision_config": {"model_type": "vit_msn", **VIT, "patch_size": 4}},
        {"layer": 1},
        {"pooled": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_proof_of_another_subject_is_no_proof(change):
    fields = {"model_type": "vit_msn", **VIT}
    stored = TransformersEncoder(vision_config=fields).config
    other = TransformersEncoder(**{**stored, **change})
    fresh = TransformersEncoder(**{**stored, **change, "tokens": None})
    assert other.config == fresh.config and other.spec == fresh.spec
    assert other.config["tokens"]["of"] != stored["tokens"]["of"]
    assert other.spec.patch_size == (4 if "vision_config" in change else 8)


@pytest.mark.parametrize("family", THIN)
def test_it_agrees_with_the_family_s_own_file(family):
    options = encoder_class(family).tiny_options()
    state = torch.get_rng_state()
    thin = encoder_class(family)(**{**options, "layer": THIN[family]})
    fields = {"model_type": thin.vision.config.model_type, **thin.config["vision_config"]}
    # Fields of ours, which the configuration has not, or not in every version of transformers.
    for name in {"dinov2": ["num_register_tokens"], "siglip": ["vision_use_head"]}.get(family, []):
        del fields[name]
    torch.set_rng_state(state)
    found = TransformersEncoder(vision_config=fields, image_size=thin.spec.image_size)
    names = ("image_size", "patch_size", "width", "prefix_tokens")
    assert [getattr(found.spec, n) for n in names] == [getattr(thin.spec, n) for n in names]
    assert found.spec.views((1, 1)) == thin.spec.views((1, 1))


def test_a_probe_leaves_the_random_numbers_as_they_were():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    TransformersEncoder.resolve(**TransformersEncoder.tiny_options())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "vit_mae", **VIT}, "vit_mae: two runs on one picture differ"),
        ({"model_type": "vit_mae", **VIT, "mask_ratio": 0.0}, "vit_mae: two runs on one picture differ"),
        ({"model_type": "pixtral", **VIT}, r"shape .* for 2 pictures, which is neither tokens nor a map"),
        ({"model_type": "clip", "image_size": 224}, "unknown clip vision_config field 'image_size'"),
        ({"model_type": "levit", "image_size": 64}, r"levit: hidden state -1 .* no layout of its tokens"),
        (
            {"model_type": "bert", "num_hidden_layers": 1, "vocab_size": 8},
            "a 'bert' model takes input_ids, not pixel_values",
        ),
        ({"model_type": "vit_msn", "hidden_szie": 3}, "unknown vit_msn vision_config field 'hidden_szie'"),
        ({"model_type": "vit_nsm"}, "found model_type 'vit_nsm'; give weights"),
        (None, "found model_type None; give weights"),
    ],
)
def test_what_cannot_be_proved_is_refused(fields, message):
    with pytest.raises(VlmkitError, match=message) as raised:
        TransformersEncoder(vision_config=fields, image_size=32 if fields and "hidden_size" in fields else 64)
    assert "\n" not in str(raised.value)


def test_tokens_in_the_order_of_windows_are_refused():
    """Hiera keeps its tokens window by window until the windows are one token each."""
    fields = {"model_type": "hiera", "image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1]}
    fields |= {"num_heads": [1, 2, 4], "num_query_pool": 2, "masked_unit_size": [4, 4]}
    with pytest.raises(
        VlmkitError, match=r"hiera: hidden state 1 .* no layout of its tokens could be proved"
    ):
        TransformersEncoder(vision_config=fields, image_size=64, layer=1)


class Rearranged:
    """A model whose tokens come in another order, or with one that stands for no patch in between."""

    def __init__(self, order):
        torch.manual_seed(0)
        self.model = AutoModel.from_config(ViTMSNConfig(**VIT)).eval()
        self.config, self.order = self.model.config, order

    def __call__(self, **inputs):
        state = self.model(**inputs).hidden_states[-1]
        return {"hidden_states": [state[:, self.order]]}


ROWS = torch.arange(1, 17).view(4, 4)
ORDERS = {
    "columns first": torch.cat([torch.tensor([0]), ROWS.T.flatten()]),
    "upside down": torch.cat([torch.tensor([0]), ROWS.flip(0).flatten()]),
    "a token in between": torch.cat([ROWS.flatten()[:8], torch.tensor([0]), ROWS.flatten()[8:]]),
    "two exchanged": torch.cat([ROWS.flatten()[[1, 0]], ROWS.flatten()[2:]]),
    "one left out": ROWS.flatten()[:-1],
}


@pytest.mark.parametrize("order", ORDERS)
def test_another_order_of_tokens_is_never_taken(order):
    with pytest.raises(VlmkitError, match="no layout of its tokens could be proved"):
        probe(Rearranged(ORDERS[order]), 32, -1)


@pytest.mark.parametrize("front", [0, 1, 7])
def test_tokens_in_front_and_behind_are_counted(front):
    order = torch.cat([torch.zeros(front, dtype=torch.long), ROWS.flatten(), torch.tensor([0, 0])])
    found = probe(Rearranged(order), 32, -1)
    assert (found.prefix, found.grid, found.form, found.width) == (front, 4, "tokens", 32)


def test_a_classifier_is_left_over_and_other_tensors_are_not(tmp_path, shake):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    shake(ResNetForImageClassification(config)).save_pretrained(tmp_path)
    ConvNextImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    options = TransformersEncoder.resolve(weights=str(tmp_path))
    TransformersEncoder(**options).load(str(tmp_path))
    with pytest.raises(VlmkitError, match=r"unexpected tensors: classifier"):
        TransformersEncoder(**options, leftover="^$").load(str(tmp_path))


def test_a_pooler_that_a_checkpoint_lacks_is_asked_for_or_left_out(tmp_path, shake):
    config = CONFIG_MAPPING["vit"](**VIT)
    shake(AutoModel.from_config(config, add_pooling_layer=False)).save_pretrained(tmp_path)
    square(32).save_pretrained(tmp_path)
    with pytest.raises(VlmkitError, match="missing tensors: pooler"):
        TransformersEncoder.from_options(weights=str(tmp_path))
    encoder = TransformersEncoder.from_options(weights=str(tmp_path), pooled=False)
    assert encoder.embed_dim == 0 and not [n for n in encoder.state_dict() if "pooler" in n]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (square(32), ("square", 32, None)),
        (ConvNextImageProcessorPil(size={"shortest_edge": 64}), ("crop", 64, 73)),
        (ConvNextImageProcessorPil(size={"shortest_edge": 384}), ("square", 384, None)),
        (
            LevitImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
            ("crop", 64, 73),
        ),
    ],
)
def test_preprocessing_is_proved_on_pictures(tmp_path, processor, expected):
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LevitConfig().to_dict()))
    found = proved_pixels(str(tmp_path), {})
    assert (found["layout"], found["image_size"], found.get("shortest_edge")) == expected


def test_preprocessing_that_no_layout_does_is_refused(tmp_path):
    with pytest.raises(UsageError, match="have no image processor; state layout, image_size, mean, std"):
        proved_pixels(str(tmp_path), {})
    SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        UsageError, match=r"SamImageProcessor.* gives pixels that no layout gives; state layout"
    ):
        proved_pixels(str(tmp_path), {})
    given = proved_pixels(str(tmp_path), {"layout": "pad", "image_size": 32})
    assert given["resample"] == "bilinear" and "layout" not in given
