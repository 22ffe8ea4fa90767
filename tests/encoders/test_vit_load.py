"""Other people's weights in our ViT, against transformers and timm; `bad` are mistakes that must be seen."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.vit import ViT
from vlmkit.errors import UsageError, VlmkitError

SIZE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZE |= {"image_size": 48, "patch_size": 4}
MLP = {"intermediate_size": 80}
REGISTERS = {"num_register_tokens": 3}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZE, **MLP)),
    "deit": lambda: DeiTModel(DeiTConfig(**SIZE, **MLP)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZE)),
    "dinov2_swiglu": lambda: Dinov2Model(Dinov2Config(**SIZE, use_swiglu_ffn=True)),
    "dinov2_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZE, **REGISTERS)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZE, **MLP, **REGISTERS, rope_theta=50.0)),
    "dinov3_swiglu": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZE, **MLP, **REGISTERS, **GATED)),
}
PREFIX = {"deit": 2, "dinov2_registers": 4, "dinov3": 4, "dinov3_swiglu": 4}
# Gate and up are one product here and two in transformers: sums are in another order.
ALLOWED = {"dinov2_swiglu": 1e-6, "dinov3_swiglu": 1e-6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shake):
    """A function: name of a model to it and a folder with its weights; each is made once."""
    made = {}

    def make(name):
        if name not in made:
            folder, model = tmp_path_factory.mktemp(name), shake(MODELS[name]()).eval()
            model.save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return make


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture((60, 40)), picture((17, 90), 1)]


@torch.no_grad()
def theirs(name, model, pixels_ICHW):
    """All hidden states, the last one normalised, and the normalised CLS token."""
    stretch = {"interpolate_pos_encoding": True} if name in ("vit", "deit") else {}
    out = model(pixels_ICHW, output_hidden_states=True, **stretch)
    return [*out.hidden_states[:-1], out.last_hidden_state], out.last_hidden_state[:, 0]


@pytest.mark.parametrize("side", [48, 32, 64])
@pytest.mark.parametrize("name", MODELS)
def test_patches_and_vector_equal_transformers(folders, pictures, gap, see, changed, name, side):
    """Table at hand (48) and interpolated to fewer and more patches; three layers."""
    model, folder = folders(name)
    encoder = ViT.from_options(weights=str(folder), image_size=side).eval()
    assert encoder.spec.prefix_tokens == PREFIX.get(name, 1)
    hidden, cls = theirs(name, model, pixel_batch(encoder.spec, pictures).pixels_ICHW)
    for layer in (0, -3, -1):
        features = see(changed(encoder, layer=layer), pictures)
        expected = hidden[layer][:, encoder.spec.prefix_tokens :].flatten(0, 1)
        assert gap(features.patches_TV, expected) <= ALLOWED.get(name, 0), layer
        assert gap(features.pooled_BE, cls) <= ALLOWED.get(name, 0)


MISTAKES = {
    "positions not antialiased": ("dinov2_registers", {"antialias": False}, 32),
    "positions antialiased": ("vit", {"antialias": True}, 32),
    "another epsilon": ("vit", {"norm_eps": 1e-2}, 48),
    "another base of the rotation": ("dinov3", {"rope_base": 100.0}, 48),
    "fewer heads": ("dinov2", {"heads": 2}, 48),
    "no rotation": ("dinov3", {"positions": "sincos_2d"}, 48),
    "vector of the patches": ("vit", {"pool": "mean", "class_token": True}, 48),
}


@pytest.mark.parametrize("bad", MISTAKES)
def test_a_wrong_option_is_seen(folders, pictures, gap, see, bad):
    name, options, side = MISTAKES[bad]
    model, folder = folders(name)
    encoder = ViT.from_options(weights=str(folder), image_size=side, **options).eval()
    hidden, cls = theirs(name, model, pixel_batch(encoder.spec, pictures).pixels_ICHW)
    features = see(encoder, pictures)
    expected = hidden[-1][:, encoder.spec.prefix_tokens :].flatten(0, 1)
    assert max(gap(features.patches_TV, expected), gap(features.pooled_BE, cls)) > 1e-3


@pytest.fixture
def edited(folders, tmp_path):
    """A function: a copy of a model's folder with other tensors and another configuration."""

    def edit(name, tensors=dict, **values):
        _, folder = folders(name)
        config = json.loads((folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **values}))
        stored = load_file(folder / "model.safetensors")
        kept = {n: t.clone() for n, t in tensors(stored).items()}
        save_file(kept, tmp_path / "model.safetensors")
        return str(tmp_path)

    return edit


Q, K = (f"encoder.layer.1.attention.attention.{part}.weight" for part in ("query", "key"))
TENSORS = {
    "queries for keys": lambda t: {**t, Q: t[K], K: t[Q]},
    "positions rolled by one": lambda t: {
        **t, "embeddings.position_embeddings": t["embeddings.position_embeddings"].roll(1, 1),
    },
    "norms exchanged": lambda t: {
        **t,
        "encoder.layer.0.layernorm_before.weight": t["encoder.layer.0.layernorm_after.weight"],
    },
}  # fmt: skip


@pytest.mark.parametrize("bad", TENSORS)
def test_a_wrong_tensor_is_seen(folders, edited, pictures, gap, see, bad):
    encoder = ViT.from_options(weights=edited("vit", TENSORS[bad])).eval()
    hidden, _ = theirs("vit", folders("vit")[0], pixel_batch(encoder.spec, pictures).pixels_ICHW)
    assert gap(see(encoder, pictures).patches_TV, hidden[-1][:, 1:].flatten(0, 1)) > 1e-2


def test_a_classifier_gives_its_encoder(tmp_path, shake, pictures, gap, see):
    model = shake(ViTForImageClassification(ViTConfig(**SIZE, **MLP))).eval()
    model.save_pretrained(tmp_path)
    encoder = ViT.from_options(weights=str(tmp_path)).eval()
    with torch.no_grad():
        pixels = pixel_batch(encoder.spec, pictures).pixels_ICHW
        logits = model.classifier(see(encoder, pictures).pooled_BE)
        assert gap(logits, model(pixels).logits) == 0


@pytest.mark.parametrize(("name", "kept"), [("vit", 2), ("dinov3_swiglu", 1)])
def test_without_a_vector_what_lies_above_the_layer_is_not_loaded(folders, pictures, see, name, kept):
    folder = str(folders(name)[1])
    whole = ViT.from_options(weights=folder, layer=kept).eval()
    lower = ViT.from_options(weights=folder, layer=kept, pooled=False).eval()
    assert len(lower.blocks) == kept
    assert torch.equal(see(lower, pictures).patches_TV, see(whole, pictures).patches_TV)


def test_a_head_of_ones_own_starts_at_random(folders, pictures, see):
    encoder = ViT.from_options(weights=str(folders("vit")[1]), projection=True, embed_dim=12).eval()
    assert see(encoder, pictures).pooled_BE.shape == (2, 12)


def test_weights_in_several_files(folders, tmp_path, see, pictures):
    model, folder = folders("vit")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, parts = (ViT.from_options(weights=str(place)).eval() for place in (folder, tmp_path))
    assert whole.fingerprint == parts.fingerprint


@pytest.mark.parametrize("stored", ["today", "before"])
def test_preprocessing_is_read(folders, edited, picture, stored):
    """As ViTImageProcessor writes it, and as the first published ones have it: a size that is a number."""
    folder = edited("vit")
    processor = ViTImageProcessorPil(size={"height": 48, "width": 48})
    processor.save_pretrained(folder)
    if stored == "before":
        file = f"{folder}/preprocessor_config.json"
        old = {"do_resize": True, "do_normalize": True, "size": 48, "resample": 2}
        with open(file, "w") as text:
            json.dump({**old, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, text)
    encoder = ViT.from_options(weights=folder)
    image = picture((61, 35))
    expected = processor(image, return_tensors="pt").pixel_values
    assert torch.equal(pixel_batch(encoder.spec, [image]).pixels_ICHW, expected)


WRONG = [
    ("vit", lambda t: {n: x for n, x in t.items() if n != Q}, {}, r"missing: blocks.1.qkv.weight"),
    ("vit", lambda t: {**t, "encoder.layer.0.extra.weight": t[Q]}, {}, r"unexpected: encoder.layer.0.extra"),
    ("vit", lambda t: {**t, Q: t[Q][:8]}, {}, r"of another shape: blocks.1.qkv.weight \(found 72x32"),
    ("vit", dict, {"hidden_act": "relu"}, "have hidden_act=relu; the encoder 'vit' has only gelu"),
    ("vit", dict, {"qkv_bias": False}, "have qkv_bias=False"),
    ("vit", dict, {"model_type": "swin"}, "are a 'swin' model; the encoder 'vit' takes vit, deit"),
    ("dinov2", dict, {"image_size": 32}, r"of another shape: positions \(found 1x145x32, needs 1x64x32\)"),
    ("dinov3", dict, {"key_bias": True}, r"missing: blocks.0.qkv.bias"),
]


@pytest.mark.parametrize(("name", "tensors", "values", "message"), WRONG)
def test_what_does_not_fit_is_named(edited, name, tensors, values, message):
    with pytest.raises(VlmkitError, match=message):
        ViT.from_options(weights=edited(name, tensors, **values))


def test_a_named_size_is_refused_with_weights(folders):
    with pytest.raises(UsageError, match="leave size out"):
        ViT.from_options(weights=str(folders("vit")[1]), size="B")


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(VlmkitError, match="have no config"):
        ViT.from_options(weights=str(tmp_path))


TIMM = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
PIXELS = {
    "input_size": [3, 32, 32], "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear",
    "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
}  # fmt: skip
FORMS = {
    "plain": {},
    "registers and qk_norm": {"reg_tokens": 3, "init_values": 0.1, "qk_norm": True},
    "positions of patches only": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    "without a class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "swiglu": {"mlp_layer": "SwiGLUPacked", "act_layer": torch.nn.SiLU, "dynamic_img_size": True},
    "rms": {"norm_layer": "RmsNorm", "dynamic_img_size": True},
}


@pytest.fixture
def timm_model(timm, shake):
    """A function: options of timm's `VisionTransformer` to one with weights that matter."""

    def make(**options):
        named = {n: getattr(timm.layers, v) for n, v in options.items() if isinstance(v, str) and v in LAYERS}
        return shake(timm.models.vision_transformer.VisionTransformer(**{**TIMM, **options, **named})).eval()

    return make


LAYERS = ("SwiGLUPacked", "RmsNorm")


@pytest.fixture
def timm_folder(tmp_path):
    """A function: tensors to a folder as timm writes it."""

    def make(tensors, more=None, **pretrained):
        config = {"architecture": "vit_of_the_test", "pretrained_cfg": {**PIXELS, **pretrained}}
        (tmp_path / "config.json").write_text(json.dumps({**config, **(more or {})}))
        save_file({n: t.clone() for n, t in tensors.items()}, tmp_path / "model.safetensors")
        return str(tmp_path)

    return make


@pytest.mark.parametrize("form", FORMS)
def test_timm_s_tensors_by_the_same_table(timm, timm_model, timm_folder, pictures, gap, see, form):
    """From pictures, through timm's own preprocessing; positions interpolated where timm does that."""
    model = timm_model(**FORMS[form])
    folder = timm_folder(model.state_dict())
    transform = timm.data.create_transform(**{**PIXELS, "input_size": (3, 32, 32)}, is_training=False)
    for side in (32, 48, 24) if "dynamic_img_size" in FORMS[form] else (32,):
        encoder = ViT.from_options(weights=folder, heads=3, image_size=side).eval()
        pixels = pixel_batch(encoder.spec, pictures).pixels_ICHW
        with torch.no_grad():
            hidden = model.forward_features(pixels)
            pooled = model.forward_head(hidden, pre_logits=True)
        features = see(encoder, pictures)
        assert gap(features.patches_TV, hidden[:, encoder.spec.prefix_tokens :].flatten(0, 1)) == 0
        assert gap(features.pooled_BE, pooled) == 0
    encoder = ViT.from_options(weights=folder, heads=3)
    ours = pixel_batch(encoder.spec, pictures).pixels_ICHW
    assert gap(ours, torch.stack([transform(picture) for picture in pictures])) < 1e-6


def test_what_timm_does_not_store_is_asked_for(timm_model, timm_folder):
    tensors = timm_model().state_dict()
    with pytest.raises(UsageError, match="do not state heads; give them"):
        ViT.from_options(weights=timm_folder(tensors))
    with pytest.raises(UsageError, match=r"states crop_mode 'border'.*no layout does"):
        ViT.from_options(weights=timm_folder(tensors, crop_mode="border"), heads=3)
    with pytest.raises(UsageError, match="state an act_layer; take the encoder 'timm'"):
        stated = {"model_args": {"act_layer": "gelu_tanh"}}
        ViT.from_options(weights=timm_folder(tensors, stated), heads=3)
    with pytest.raises(VlmkitError, match="are no ViT with stored positions"):
        ViT.from_options(weights=timm_folder({"conv1.weight": torch.zeros(4, 3, 2, 2)}), heads=3)


def test_a_norm_after_pooling_is_not_taken_for_ours(timm_model, timm_folder):
    """timm normalises some means after pooling: other vectors, and tensors of another name."""
    tensors = timm_model(class_token=False, global_pool="avg", fc_norm=True).state_dict()
    with pytest.raises(VlmkitError, match=r"missing: norm.bias, norm.weight; unexpected: fc_norm.bias"):
        ViT.from_options(weights=timm_folder(tensors), heads=3)
