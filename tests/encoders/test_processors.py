"""What is read from a stored image processor, and what is refused."""

import json
from pathlib import Path

import pytest

from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD, CLIPEncoder
from vlmkit.errors import UsageError


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"image_mean": [0.1, 0.2, 0.3]}, {"mean": (0.1, 0.2, 0.3)}),
        ({"image_std": [0.1, 0.2, 0.3]}, {"std": (0.1, 0.2, 0.3)}),
        ({"resample": 2}, {"resample": "bilinear"}),
        ({"size": 32, "crop_size": 32}, {"layout": "crop"}),
        ({"size": {"height": 32, "width": 32}}, {"layout": "square"}),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, {"layout": "square"}),
    ],
)
def test_preprocessing_is_read_from_the_checkpoint(edited, stored, expected):
    resolved = CLIPEncoder.resolve(weights=edited("preprocessor_config.json", **stored))
    spec = CLIPEncoder(**resolved).spec
    assert {name: getattr(spec, name) for name in expected} == expected
    given = CLIPEncoder(**CLIPEncoder.resolve(weights=resolved["text_tower"], layout="pad", text_tower=None))
    assert (given.spec.layout, given.text_tower_ref) == ("pad", None)


def test_the_processor_file_of_transformers_5_comes_first(edited):
    folder = Path(edited("preprocessor_config.json", image_mean=[0.1, 0.2, 0.3]))
    nested = {"image_processor": {"image_mean": [0.4, 0.5, 0.6]}, "processor_class": "CLIPProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert CLIPEncoder.resolve(weights=str(folder))["mean"] == [0.4, 0.5, 0.6]
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert CLIPEncoder.resolve(weights=str(folder))["mean"] == [0.1, 0.2, 0.3]
    (folder / "preprocessor_config.json").unlink()
    spec = CLIPEncoder(**CLIPEncoder.resolve(weights=str(folder))).spec
    assert (spec.mean, spec.std, spec.layout) == (CLIP_MEAN, CLIP_STD, "crop")


@pytest.mark.parametrize(
    "stored",
    [
        {"size": {"shortest_edge": 36}},
        {"crop_size": {"height": 28, "width": 28}},
        {"do_center_crop": False},
        {"do_normalize": False},
        {"rescale_factor": 1.0},
        {"resample": 0},
    ],
)
def test_preprocessing_that_we_cannot_do_is_refused(edited, stored):
    with pytest.raises(UsageError, match="image processor"):
        CLIPEncoder.resolve(weights=edited("preprocessor_config.json", **stored))
