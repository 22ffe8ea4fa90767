"""Counted tokens are produced tokens: every layout, six encoders, every mark, random sizes."""

import random

import pytest
import torch
from PIL import Image

from vlmkit.data.batch import image_tensors, row_images
from vlmkit.encoders import encoder_class
from vlmkit.errors import VlmkitError
from vlmkit.inference import model_inputs, question
from vlmkit.layouts import LAYOUTS

# Layouts whose views have other sizes than the encoder's own side, for encoders that take any grid.
FREE = {
    "native": {"max_patches": 24},
    "qwen": {"min_pixels": 64, "max_pixels": 2400},
    "longest": {"longest_edge": 48},
}
OPTIONS = {"anyres_max": {"max_tiles": 2}, "tiles": {"max_tiles": 6}, **FREE}
SIZE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "image_size": 8}
WITH_MLP = {**SIZE, "intermediate_size": 16}
ENCODERS = {
    "clip": {"vision_config": {**WITH_MLP, "projection_dim": 4}},
    "siglip": {"vision_config": WITH_MLP},
    "dinov2": {"vision_config": SIZE},
    "dinov3": {"vision_config": {**WITH_MLP, "num_register_tokens": 2}},
    "vit": {"image_size": 8, "patch_size": 4, "width": 8, "depth": 2, "heads": 2, "positions": "sincos_2d"},
    "siglip2_naflex": {
        "vision_config": {k: v for k, v in WITH_MLP.items() if k != "image_size"} | {"num_patches": 4}
    },
}
FAST, ALL = 40, 1000
CHUNK = 50


CASES = [
    pytest.param(encoder, layout, id=f"{encoder}-{layout}")
    for encoder in ENCODERS
    for layout in LAYOUTS
    if layout not in FREE or encoder_class(encoder).any_grid
]


def mismatches(model, sizes):
    """How many images give another number of tokens than was counted."""
    wrong = 0
    for start in range(0, len(sizes), CHUNK):
        some = sizes[start : start + CHUNK]
        rows = [row_images([Image.new("RGB", size, "red")], [(*size, 0)], model.specs) for size in some]
        tensors = image_tensors(rows)
        with torch.no_grad():
            runs = model.image_tokens(model.encode_images(**tensors), tensors["image_sizes"])
        counts = [len(run) for row in runs for run in row]
        wrong += sum(n != model.count_tokens(size) for n, size in zip(counts, some, strict=True))
    return wrong


def draw_sizes(number):
    """Up to 200 times as long as wide: more is refused by the layout `qwen`, as by its reference."""
    draw, sizes = random.Random(number), []
    while len(sizes) < number:
        size = draw.randint(1, 400), draw.randint(1, 400)
        sizes += [size] * (max(size) <= 200 * min(size))
    return sizes


@pytest.fixture(scope="module")
def build(tiny_vlm):
    def make(encoder, layout, splice=None, **options):
        stated = {"type": layout, **OPTIONS.get(layout, {}), **options}
        return tiny_vlm(encoder={"type": encoder, **ENCODERS[encoder], "layout": stated}, splice=splice)

    return make


@pytest.mark.parametrize(("encoder", "layout"), CASES)
def test_no_mismatch(build, encoder, layout):
    assert mismatches(build(encoder, layout), draw_sizes(FAST)) == 0


MARKS = {
    "row_separator": {"row_separator": True},
    "image_start": {"image_start": True},
    "image_end": {"image_end": True},
    "all": dict.fromkeys(("row_separator", "image_start", "image_end"), True),
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_mismatch_with_marks(build, layout, marks):
    # A layout with its own newline takes no separators, so it is left out where there is one.
    own = {"newline": False} if layout in ("anyres", "anyres_max") else {}
    model = build("vit", layout, marks, **own)
    plain = build("vit", layout, **own)
    sizes = draw_sizes(FAST // 4)
    assert mismatches(model, sizes) == 0
    assert all(model.count_tokens(size) > plain.count_tokens(size) for size in sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "layout"), CASES)
def test_no_mismatch_in_a_thousand_sizes(build, encoder, layout):
    assert mismatches(build(encoder, layout), draw_sizes(ALL)) == 0


@pytest.mark.parametrize("layout", ["crop", "pad", "anyres", "tiles", "split"])
def test_prompts_of_random_images_fit_the_model(build, noise, layout):
    """What the processor writes is what the model makes of the pixels: one function counts for both."""
    model, draw = build("vit", layout), random.Random(layout)
    for _ in range(6):
        sizes = [(draw.randint(1, 120), draw.randint(1, 120)) for _ in range(draw.randint(1, 3))]
        inputs = model_inputs(model, [question([noise(1, size) for size in sizes], "say yes")])
        written = int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert written == sum(map(model.count_tokens, sizes)) == sum(map(model.processor.count_tokens, sizes))
        with torch.no_grad():
            assert torch.isfinite(model(**inputs).logits).all()


def test_one_placeholder_less_is_an_error_with_both_counts(build, noise):
    """As 728 for 729: nothing is cut to fit, and nothing is repeated."""
    model = build("vit", "crop")
    inputs = model_inputs(model, [question([noise(1)], "say yes")])
    place = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.cat([inputs[name][:, :place], inputs[name][:, place + 1 :]], 1)
    count = model.count_tokens((16, 16))
    with pytest.raises(VlmkitError, match=f"row 0 has {count - 1} image placeholders .* need {count}"):
        model(**inputs)
