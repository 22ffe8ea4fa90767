"""Towers that take any grid: of views of several sizes in one batch each is the reference's."""

import pytest
import torch

from vlmkit.encoders import ENCODERS, encoder_class
from vlmkit.errors import UsageError

SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
FAMILIES = {
    "dinov2": {"vision_config": {**SIZE, "image_size": 24, "num_register_tokens": 2}},
    "dinov3": {
        "vision_config": {**SIZE, "image_size": 24, "intermediate_size": 64, "num_register_tokens": 2}
    },
}
SIZES = [(640, 480), (100, 333), (33, 32), (9, 90), (640, 480)]


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, shake):
    options = {**FAMILIES[request.param], "layout": {"type": "native", "max_patches": 40}}
    return shake(encoder_class(request.param).from_options(**options)).eval()


@pytest.fixture(scope="module")
def pictures(picture):
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


def test_each_view_is_the_reference_s(encoder, pictures, see, gap):
    features = see(encoder, pictures)
    assert len(set(features.grids)) == 4 and (1, 40) not in features.grids
    for view, vector, image in zip(features.views(), features.pooled_BE, pictures, strict=True):
        (pixels,) = encoder.spec.preprocess(image)
        with torch.no_grad():
            theirs = encoder.vision(torch.from_numpy(pixels)[None], output_hidden_states=True)
        patches = theirs.hidden_states[-2][0, encoder.spec.prefix_tokens :]
        assert gap(view, patches) < 1e-5
        assert gap(vector, theirs.last_hidden_state[0, 0]) < 1e-5


def test_rows_are_not_columns(encoder, picture, see):
    """A picture lying and the same standing have other features, in as many patches."""
    lying = picture((90, 30))
    flat, upright = (see(encoder, [image]) for image in (lying, lying.transpose(2)))
    assert flat.grids[0] == upright.grids[0][::-1]
    rows, cols = flat.grids[0]
    turned = upright.patches_TV.view(cols, rows, -1).transpose(0, 1).flatten(0, 1)
    assert (flat.patches_TV - turned).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"timm"}))
def test_other_towers_refuse_views_of_other_sizes(name):
    cls = encoder_class(name)
    options = {**cls.tiny_options(), "layout": {"type": "native", "max_patches": 40}}
    if name.startswith("qwen"):  # the side of a view follows from their own layout alone
        options["image_size"] = 64
    if cls.any_grid:
        cls.from_options(**options)
        return
    with pytest.raises(UsageError, match=r"takes views of \d+x\d+ pixels and layout .* makes others"):
        cls.from_options(**options)
