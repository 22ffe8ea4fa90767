"""A tiny CLIP checkpoint with weights that matter, and pictures of awkward sizes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.clip import CLIPEncoder

VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def picture():
    """A function: (width, height) and seed to noise over a gradient, nowhere flat and nowhere symmetric."""

    def draw(size, seed=0, mode="RGB"):
        width, height = size
        channels = len(mode)
        noise = np.random.default_rng(seed).integers(0, 128, (height, width, channels))
        ramp = np.linspace(0, 127, width * height).reshape(height, width, 1)
        return Image.fromarray((noise + ramp).astype(np.uint8).squeeze(), mode=None)

    return draw


@pytest.fixture(scope="session")
def shake():
    """A function that gives a model weights with which each block matters; no bias is zero."""

    @torch.no_grad()
    def fill(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(model.named_parameters()):
            random = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embedding" not in name:
                parameter.copy_(random * 1.5 * parameter[0].numel() ** -0.5)
            else:
                unit = ("norm" in name and name.endswith("weight")) or "lambda" in name
                parameter.copy_(random * 0.3 + unit)
        return model

    return fill


@pytest.fixture(scope="session")
def gap():
    """A function: largest difference of two tensors over the largest value of the second, or over 1."""

    def largest(ours, theirs):
        assert ours.shape == theirs.shape
        return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))

    return largest


@pytest.fixture(scope="session")
def see():
    """A function: an encoder and pictures to the features."""

    def run(encoder, pictures):
        with torch.no_grad():
            return encoder(pixel_batch(encoder.spec, pictures))

    return run


@pytest.fixture(scope="session")
def changed():
    """A function: the encoder with the same weights and other constructor arguments."""

    def build(encoder, **arguments):
        twin = type(encoder)(**{**encoder.config, **arguments}).eval()
        twin.load_state_dict(encoder.state_dict())
        return twin

    return build


def _tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    names += ["".join(merge) for merge in merges]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=20)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, shake):
    """A whole CLIP checkpoint; the halves' own `projection_dim` (512) is not the one that is used (20)."""
    folder = tmp_path_factory.mktemp("clip")
    words = _tokenizer()
    text = {**TEXT, "vocab_size": len(words)}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
    shake(CLIPModel(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(clip_folder):
    """transformers' own model of the checkpoint."""
    return CLIPModel.from_pretrained(clip_folder, dtype="float32").eval()


@pytest.fixture(scope="session")
def processor(clip_folder):
    """transformers' own preprocessing of the checkpoint."""
    return CLIPImageProcessorPil.from_pretrained(clip_folder)


@pytest.fixture(scope="session")
def clip(clip_folder):
    """Our encoder of the checkpoint."""
    return CLIPEncoder.from_options(weights=str(clip_folder)).eval()


@pytest.fixture
def edited(clip_folder, tmp_path):
    """A function that copies the checkpoint and changes values in one of its JSON files."""

    def edit(name, **values):
        for file in clip_folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        stored = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**stored, **values}))
        return str(tmp_path)

    return edit
