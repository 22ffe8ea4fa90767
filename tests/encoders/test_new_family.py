"""A new family by following docs/encoders.md literally: the guide's file is run, counted and proved."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import ViTMSNConfig, ViTMSNModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vlmkit.encoders import encoder_class
from vlmkit.testing import check_encoder

GUIDE = Path(__file__).parents[2] / "docs/encoders.md"
NAME = "vit_msn:ViTMSNEncoder"
SIZE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.fixture
def family(tmp_path, monkeypatch):
    """The class of the guide's file, which is written where a user would write it."""
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S) if "MSN" in b]
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "guide", "exec"), {})
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield encoder_class(NAME)
    sys.modules.pop("vit_msn", None)


def test_it_takes_under_30_lines(family, tmp_path):
    lines = (tmp_path / "vit_msn.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 30


def test_it_keeps_the_contract(family):
    check_encoder(family).raise_for_failures()


def test_a_checkpoint_is_the_reference_s(family, tmp_path, shake, picture, see, gap):
    folder = tmp_path / "checkpoint"
    reference = shake(ViTMSNModel(ViTMSNConfig(**SIZE))).eval()
    reference.save_pretrained(folder)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    pictures = [picture(size, seed) for seed, size in enumerate([(640, 480), (33, 50), (32, 32)])]
    with torch.no_grad():
        theirs = reference(**processor(pictures, return_tensors="pt"), output_hidden_states=True)
    features = see(family.from_options(weights=str(folder)).eval(), pictures)
    assert gap(features.patches_TV, theirs.hidden_states[-2][:, 1:].flatten(0, 1)) == 0
    assert gap(features.pooled_BE, theirs.last_hidden_state[:, 0]) == 0
