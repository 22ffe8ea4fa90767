"""What a spec states, and what importing it costs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit_retrieval.images import to_rgb


def test_pixels_by_hand():
    image = Image.new("RGB", (4, 4), (0, 51, 255))
    (pixels,) = VisionSpec(4, 2, 8, mean=(0.5, 0.1, 0.0), std=(0.5, 0.1, 2.0)).preprocess(image)
    assert pixels.shape == (3, 4, 4)
    assert np.allclose(pixels[:, 0, 0], [-1.0, 1.0, 0.5])


def test_transparency_becomes_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_views_are_counted_from_sizes():
    (view,) = VisionSpec(336, 14, 1024, prefix_tokens=1).views((1000, 30))
    assert (view.rows, view.cols, view.role) == (24, 24, "full")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layout": "croop"}, "unknown layout 'croop'; did you mean 'crop'"),
        ({"resample": "nearest"}, "unknown resample 'nearest'.*known: bicubic, bilinear, lanczos"),
    ],
)
def test_unknown_names_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        VisionSpec(32, 8, 16, **wrong)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("vlmkit.encoders.spec", ("torch", "transformers")),
        ("vlmkit.encoders.processors", ("torch", "transformers")),
        ("vlmkit.layouts", ("torch", "transformers")),
        ("vlmkit.encoders", ("torch", "transformers")),
        ("vlmkit.encoders.base", ("transformers",)),
        ("vlmkit.encoders.vit", ("transformers",)),
        ("vlmkit_connectors", ("transformers", "vlmkit")),
    ],
)
def test_importing_stays_light(module, absent):
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    path = os.pathsep.join(p for p in sys.path if p)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize("name", ENCODERS)
def test_every_name_in_the_table_is_an_encoder_of_that_family(name):
    assert issubclass(encoder_class(name), VisionEncoder)
    assert encoder_class(name).family == name


def test_a_strangers_class_is_taken_by_its_path():
    assert encoder_class("vlmkit.encoders.vit:ViT") is encoder_class("vit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clipp", "unknown encoder 'clipp'; did you mean 'clip'"),
        ("vlmkit.nothing:ViT", "cannot be imported"),
        ("vlmkit.encoders.vit:Nothing", "cannot be imported"),
        ("vlmkit.encoders.spec:VisionSpec", "not a subclass of vlmkit.encoders.base.VisionEncoder"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        encoder_class(name)
