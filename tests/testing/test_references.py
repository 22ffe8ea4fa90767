"""The checks that need published weights, on tiny checkpoints of every family with a reference."""

import json
import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlmkit.cli import main
from vlmkit.encoders import encoder_class
from vlmkit.testing import check_encoder, transformers_reference
from vlmkit.testing.references import IMAGES, why_none
from vlmkit.testing.twin import make_weights_matter

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1, "projection_size": 32,
}  # fmt: skip
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
FIXED = {**SIZE, "image_size": 32, "patch_size": 8}
WITH_TEXT = ("clip", "siglip", "siglip2_naflex")
SWIN = {
    "image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [1, 2, 2],
    "window_size": 4,
}  # fmt: skip
DINO = {k: v for k, v in FIXED.items() if k != "intermediate_size"}
EDGE, CROP = {"shortest_edge": 32}, {"height": 32, "width": 32}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}


def letters():
    """One token a letter, and an end."""
    names = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz !"]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def halves(config, vision, **fields):
    return config(text_config={**TEXT, "vocab_size": len(letters())}, vision_config=vision, **fields)


CHECKPOINTS = {
    "clip": ("clip", lambda: CLIPModel(halves(CLIPConfig, FIXED, projection_dim=20)),
             lambda: CLIPImageProcessorPil(size=EDGE, crop_size=CROP)),
    "siglip": ("siglip", lambda: SiglipModel(halves(SiglipConfig, FIXED)),
               lambda: SiglipImageProcessorPil(size=CROP)),
    "siglip2": ("siglip2_naflex",
                lambda: Siglip2Model(halves(Siglip2Config, {**SIZE, "patch_size": 8, "num_patches": 16})),
                lambda: Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20)),
    "dinov2": ("dinov2", lambda: Dinov2Model(Dinov2Config(**DINO)),
               lambda: BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=CROP, **IMAGENET)),
    "dinov2_with_registers": (
        "dinov2", lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)),
        lambda: BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=CROP, **IMAGENET)),
    "dinov3_vit": ("dinov3", lambda: DINOv3ViTModel(DINOv3ViTConfig(**FIXED, num_register_tokens=2)),
                   lambda: ViTImageProcessorPil(size=CROP, **IMAGENET)),
    "vit": ("hf_vit", lambda: ViTModel(ViTConfig(**FIXED)), lambda: ViTImageProcessorPil(size=CROP)),
    "vit_mae": ("mae", lambda: ViTMAEModel(ViTMAEConfig(**FIXED)),
                lambda: ViTImageProcessorPil(size=CROP, **IMAGENET)),
    "swin": ("swin", lambda: SwinModel(SwinConfig(**SWIN)),
             lambda: ViTImageProcessorPil(size={"height": 64, "width": 64}, **IMAGENET)),
    "convnext": ("convnext",
                 lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[16, 24, 32], depths=[1, 2, 1],
                                                      num_stages=3, image_size=64)),
                 lambda: ConvNextImageProcessorPil(size={"shortest_edge": 64}, **IMAGENET)),
}  # fmt: skip


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    """Family, and a folder with a whole tiny checkpoint whose weights matter."""
    family, model, processor = CHECKPOINTS[request.param]
    torch.manual_seed(0)
    made = model()
    make_weights_matter(made)
    made.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    if hasattr(made, "text_model"):
        letters().save_pretrained(tmp_path)
    return family, tmp_path


def measured(report):
    return {row.name: row for row in report.rows}


def test_every_reference_is_compared():
    assert set(CHECKPOINTS) == set(IMAGES)


def test_published_weights_equal_transformers(checkpoint):
    family, folder = checkpoint
    images, texts = transformers_reference(str(folder))
    options = {"weights": str(folder)}
    report = check_encoder(encoder_class(family), options, reference=images, text_reference=texts)
    report.raise_for_failures()
    rows = measured(report)
    assert rows["processor"].status == rows["reference"].status == "passed"
    assert float(rows["reference"].measured.split()[-1]) < 1e-5
    assert rows["text"].status == ("passed" if family in WITH_TEXT else "skipped")
    if family in WITH_TEXT:
        assert float(rows["text"].measured.split()[-1]) < 1e-5


@pytest.mark.parametrize("mistake", ["processor", "reference", "text"])
def test_a_mistake_is_found_by_its_check_alone(checkpoint, mistake):
    family, folder = checkpoint
    images, texts = transformers_reference(str(folder))
    options = {"weights": str(folder)}
    if mistake == "processor":
        # As if the checkpoint's processor had been overlooked: the vectors themselves are not compared.
        options, images = {**options, "mean": [0.4, 0.5, 0.6]}, None
    if mistake == "reference":
        right = images

        def images(pictures):
            return right(pictures)[:, torch.arange(-1, len(right(pictures)[0]) - 1)]

    if mistake == "text":
        if texts is None:
            assert family not in WITH_TEXT
            return
        exact = texts

        def texts(words):
            return exact([word + "!" for word in words])

    three = ["processor", "reference", "text"]
    report = check_encoder(encoder_class(family), options, reference=images, text_reference=texts, only=three)
    assert report.failed == (mistake,), str(report)


def test_a_vector_of_another_head_is_no_reference(tmp_path):
    """Of a model that is not in the table nothing is guessed."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert transformers_reference(str(tmp_path)) == (None, None)


@pytest.mark.parametrize(
    ("family", "options", "says"),
    [
        ("hf_vit", ["layer"], ""),
        ("hf_vit", ["layer", "image_size", "mean"], "left out because of image_size, mean"),
        ("transformers", [], "no reference for model type 'vit' by its pooler_output"),
    ],
)
def test_why_there_is_no_reference_is_said(tmp_path, family, options, says):
    ViTConfig(**FIXED).save_pretrained(tmp_path)
    why = why_none(str(tmp_path), family, [*options, "weights"])
    assert says in why and bool(says) == bool(why)


def test_a_model_type_without_a_reference_is_named(tmp_path, capsys):
    torch.manual_seed(0)
    BeitModel(BeitConfig(**FIXED)).save_pretrained(tmp_path)
    assert main(["encoder", "check", f"beit:{tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^reference +skipped +no reference for model type 'beit' \(there is one", out, re.M)
