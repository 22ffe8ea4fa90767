"""`vlmkit encoder check` and `vlmkit list` of encoders and connectors, as a user meets them."""

import json
import re
import sys

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from vlmkit.cli import main
from vlmkit.encoders import ENCODERS
from vlmkit.encoders.known import KNOWN
from vlmkit.encoders.licences import LICENCES, UNKNOWN, licence
from vlmkit.testing import CHECKS
from vlmkit_connectors import CONNECTORS, LayerInjection

SMALL = ["image_size=16", "patch_size=8", "width=16", "depth=1", "heads=2", "embed_dim=6"]
STRANGER = """
import torch
from torch import nn

from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.spec import VisionSpec
from vlmkit_connectors import VisionFeatures


class Patches(VisionEncoder):
    family = "patches"

    def __init__(self, width=16, forgotten=False, weights=None):
        super().__init__({"width": width, "forgotten": forgotten}, text_tower=None, weights=weights)
        self.spec = VisionSpec(image_size=64, patch_size=16, width=width * (2 if forgotten else 1))
        self.projection = nn.Conv2d(3, width, 16, 16)

    def load(self, weights):
        self.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, batch):
        patches = self.projection(batch.pixels_ICHW).flatten(2).transpose(1, 2).flatten(0, 1)
        return VisionFeatures(patches, batch.grids_I2, batch.image_of_view_I)
"""


ROWS = [
    "clip openai/clip-vit-large-patch14-336 304 M 14 336 crop 576 yes MIT (repository)",
    "siglip google/siglip2-so400m-patch14-384 428 M 14 384 square 729 yes Apache-2.0",
    "siglip2_naflex google/siglip2-base-patch16-naflex 93 M 16 any native 252 yes Apache-2.0",
    "pixtral mistral-community/pixtral-12b 403 M 16 any longest 1200 no see model card",
    "dinov2 facebook/dinov2-with-registers-large 304 M 14 224 crop 256 no Apache-2.0",
]


@pytest.fixture
def cli(capsys):
    """Run a command: (exit code, stdout, stderr)."""

    def run(*argv):
        code = main([str(a) for a in argv])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    (tmp_path / "kit_stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield "kit_stranger:Patches"
    sys.modules.pop("kit_stranger", None)


def test_a_name_with_options_is_checked(cli):
    code, out, _ = cli("encoder", "check", "vit", *SMALL)
    assert code == 0 and "vlmkit.encoders.vit:ViT" in out and "tiny random weights" in out
    assert all(re.search(rf"^{name}\s+(passed|skipped)", out, re.MULTILINE) for name in CHECKS)
    assert out.splitlines()[-1].endswith("skipped") and " 0 failed" in out


@pytest.mark.parametrize(("options", "status"), [([], "passed"), (["pooled=false"], "skipped")])
def test_the_vector_of_a_tiny_vit_is_checked(cli, options, status):
    code, out, _ = cli("encoder", "check", "vit", *options)
    assert code == 0 and re.search(rf"^vector +{status}", out, re.MULTILINE)


def test_a_strangers_class_fails_with_exit_code_1_and_json(cli, stranger):
    assert cli("encoder", "check", stranger, "width=8")[0] == 0
    code, out, _ = cli("encoder", "check", stranger, "forgotten=true", "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert [check["name"] for check in report["checks"] if check["status"] == "failed"] == ["forward"]
    assert [check["name"] for check in report["checks"]] == list(CHECKS)


def test_published_weights_are_held_against_transformers(cli, tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
    Dinov2Model(Dinov2Config(**size, patch_size=8)).save_pretrained(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    crop = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "resample": 3}
    BitImageProcessorPil(**crop, image_mean=mean, image_std=std).save_pretrained(tmp_path)
    code, out, _ = cli("encoder", "check", f"dinov2:{tmp_path}")
    assert code == 0
    assert re.search(r"^reference\s+passed\s+relative difference", out, re.MULTILINE)
    assert re.search(r"^processor\s+passed", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["clipp"], "did you mean 'clip'"),
        (["no.module:Class"], "cannot be imported"),
        (["vit", "widht=3"], "did you mean 'width'"),
        ([".", "layer=1"], "leave out layer"),
        (["."], "vlmkit.json"),
        ([f"clip:{__file__}x"], "no such folder"),
    ],
)
def test_what_cannot_be_checked_is_one_line(cli, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("encoder", "check", *argv)
    assert code == 2 - ("no such" in says) and says in err and out == ""
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("vit", "a 'vit' checkpoint, no run; name its encoder: hf_vit:."),
        ("siglip2", "name its encoder: siglip2_naflex:."),
        ("bert", "name its encoder: FAMILY:. (`vlmkit list encoders`"),
    ],
)
@pytest.mark.parametrize("options", [[], ["layer=1"]])
def test_a_plain_checkpoint_is_no_run_and_its_encoder_is_named(
    cli, tmp_path, monkeypatch, kind, says, options
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    code, _, err = cli("encoder", "check", ".", *options)
    assert code == 2 and says in err


def test_list_has_a_line_for_every_hub_id(cli, made):
    """From bundled shapes, without weights; nothing is wrapped or cut off, so that grep finds whole lines."""
    with made:
        code, out, _ = cli("list", "encoders")
    assert code == 0 and made.most < 1000
    for name, known in KNOWN.items():
        (line,) = [line for line in out.splitlines() if name in line.split()]
        assert line.split()[0] == known.family
        assert line.split()[-1] in licence(name)
    assert set(ROWS) <= {" ".join(line.split()) for line in out.splitlines()}
    assert all(re.search(rf"^ ?{family} ", out, re.MULTILINE) for family in ENCODERS)


def rows_of(out):
    """Lines of the table of connectors by name, as words."""
    lines = [line.split() for line in out.splitlines() if line.strip()]
    return {words[0]: words[1:] for words in lines}


def test_list_has_a_line_for_every_connector(cli):
    code, out, _ = cli("list", "connectors")
    assert code == 0
    rows = rows_of(out)
    for name, connector in CONNECTORS.items():
        assert connector.source in out and " ".join(rows[name]).endswith(connector.source)
    # Two layers: 1024 * 2048 + 2048 and 2048 * 2048 + 2048.
    assert rows["mlp"][:5] == ["576", "247", "yes", "6.3", "M"]
    assert "an encoder of width 1,024 and a language model of width 2,048 with 24 layers" in out


class Beside(LayerInjection):
    """Looks on from beside the text."""

    source = "Nobody 1999, https://example.org"

    def __init__(self, vision_widths, text_width, text_layers):
        super().__init__(text_width, text_width)
        self.weight = torch.nn.Parameter(torch.empty(text_layers, 500_000))

    def num_tokens(self, grid):
        return 7

    def forward(self, features, text=None):
        raise AssertionError("a table needs shapes only")


def test_tokens_outside_the_sequence_are_marked(cli, monkeypatch):
    monkeypatch.setitem(CONNECTORS, "beside", Beside)
    _, out, _ = cli("list", "connectors")
    expected = "7* 7* no 12.0 M Looks on from beside the text. Nobody 1999, https://example.org"
    assert " ".join(rows_of(out)["beside"]) == expected
    assert "in the sequence an image is one token" in out
    monkeypatch.setattr("vlmkit_connectors.CONNECTORS", {"mlp": CONNECTORS["mlp"]})
    assert "*" not in cli("list", "connectors")[1]


def test_a_licence_is_stated_or_the_model_card_is_named():
    assert licence("someone/else") == UNKNOWN
    assert all("/" in name and stated for name, stated in LICENCES.items())
