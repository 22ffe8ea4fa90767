"""Attention of an answer to the image: the right tokens, the right query, the right layer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit import inference
from vlmkit.budget import Budget
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.look.answer import deal, looked_at, token_grids
from vlmkit.look.scene import NotPossible
from vlmkit_connectors import Groups, Interleaved, MLPConnector

QUESTION = "what color is it?"
# The hidden state below the first block: each patch knows itself and nothing else.
BLIND = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "layer": 0}
ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def plain(tiny_vlm):
    """One token a patch, one head: a patch changes the key of its own token alone."""
    return tiny_vlm(encoder=BLIND, connector={"pool": 1}, llm_options=ONE_HEAD)


def repaint(image, row, col):
    changed = np.array(image)
    changed[4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = (255, 0, 200)
    return Image.fromarray(changed)


@pytest.mark.parametrize(("which", "row", "col"), [(0, 1, 2), (1, 3, 0), (1, 0, 3)])
def test_a_patch_changes_its_own_cell_of_its_own_image(plain, noise, which, row, col):
    """Up to the common normaliser, all other cells of both images keep their values."""
    images = [noise(0), noise(1)]
    before = looked_at(plain, images, QUESTION, layer=1)
    images[which] = repaint(images[which], row, col)
    after = looked_at(plain, images, QUESTION, layer=1)
    ratios = np.stack(after.maps) / np.stack(before.maps)
    usual = np.median(ratios)
    places = np.argwhere(np.abs(ratios / usual - 1) > 1e-3).tolist()
    assert places == [[which, row, col]]


@pytest.mark.parametrize("llm", ["llama", "gpt2", "opt", "gpt_neox"])
def test_equal_to_eager_attention_while_generating(tiny_vlm, noise, llm):
    """The attention by which `generate` chose the second token, out of transformers' own eager code."""
    model, image = tiny_vlm(llm), noise(3)
    looked = [looked_at(model, [image], QUESTION, 2, layer) for layer in (1, 2)]
    model.language_model.set_attn_implementation("eager")
    inputs = inference.model_inputs(model, [inference.question([image], QUESTION)])
    with torch.no_grad():
        made = model.generate(
            **inputs, **inference.DEFAULTS, output_attentions=True, return_dict_in_generate=True
        )
    places = inputs["input_ids"][0] == model.config.image_token_id
    for own, layer in zip(looked, made.attentions[1], strict=True):
        wanted = layer[0, :, -1, : len(places)].mean(0)[places].view(2, 2).numpy()
        assert np.abs(own.maps[0] - wanted).max() <= 1e-6
        assert own.share == pytest.approx(float(wanted.sum()), abs=1e-6)
        assert own.heads == 4 and own.layers == 2 and own.cells == 2
        assert wanted.std() > 1e-5
    assert np.abs(looked[0].maps[0] - looked[1].maps[0]).max() > 1e-5


@pytest.mark.parametrize("llm", ["gemma2", "llama"])
def test_a_language_model_with_eager_attention_is_read_too(tiny_vlm, noise, llm):
    model = tiny_vlm(llm)
    before = looked_at(model, [noise(3)], QUESTION)
    model.language_model.set_attn_implementation("eager")
    looked = looked_at(model, [noise(3)], QUESTION)
    # Gemma 2 caps its scores, which sdpa does not in every release of transformers.
    assert np.abs(looked.maps[0] - before.maps[0]).max() <= (1e-3 if llm == "gemma2" else 1e-6)
    assert (looked.layer, looked.layers) == (2, 2) and 0 < looked.share < 1


def test_the_answer_is_that_of_the_model(plain, noise):
    looked = looked_at(plain, [noise(0)], QUESTION, 2)
    assert looked.answer == plain.ask(noise(0), QUESTION)
    assert looked.number == 2 <= looked.tokens


def test_what_does_not_exist_is_refused(plain, tiny_vlm, noise):
    with pytest.raises(UsageError, match=r"no token 99; its tokens are: 1 '"):
        looked_at(plain, [noise(0)], QUESTION, 99)
    with pytest.raises(UsageError, match="no attention layer 3; it has 1 to 2"):
        looked_at(plain, [noise(0)], QUESTION, layer=3)
    model = tiny_vlm()
    model.connector = torch.nn.Identity()
    with pytest.raises(NotPossible, match="connector Identity have no place"):
        looked_at(model, [noise(0)], QUESTION)


NATIVE = {**BLIND, "layout": {"type": "native", "max_patches": 100}}


def test_an_image_that_the_budget_made_smaller(tiny_vlm, noise):
    """Its own size and level count, not the layout at full size."""
    model = tiny_vlm(encoder=NATIVE, connector={"pool": 1}, llm_options=ONE_HEAD)
    model.config.image_tokens = {"per_image": 40}
    model.processor.budget = Budget(40)
    looked = looked_at(model, [noise(0, (60, 30))], QUESTION)
    (view,) = model.spec.features((60, 30), looked.levels[0])
    assert looked.levels[0] > 0 and looked.maps[0].shape == (view.rows, view.cols)
    assert looked.maps[0].size <= 40 < 98


class Halves(MLPConnector):
    """A connector of one's own."""


@pytest.mark.parametrize(("pool", "side"), [(1, 9), (2, 9), (3, 9), (4, 9), (5, 9), (4, 3)])
def test_any_connector_with_a_grid_is_laid_out(plain, pool, side):
    spec = VisionSpec(4 * side, 4, 16)
    own = SimpleNamespace(connector=Halves([16], 32, pool=pool), spec=spec)
    cells, grids = token_grids(own, [(50, 50, 0)])
    assert cells == min(pool, side) and grids == [[own.connector.token_grid((side, side))]]


@pytest.mark.parametrize("fuse", [Groups, Interleaved])
def test_tokens_of_several_encoders_are_refused(plain, fuse):
    members = [MLPConnector([16], 32) for _ in range(2)]
    own = SimpleNamespace(connector=fuse(members), spec=plain.spec)
    with pytest.raises(NotPossible, match=f"connector {fuse.__name__} have no place .*several encoders"):
        token_grids(own, [(50, 50, 0)])


@pytest.mark.parametrize("layout", ["tiles", "split", "anyres"])
def test_tiles_are_refused(plain, layout):
    own = SimpleNamespace(connector=plain.connector, spec=VisionSpec(16, 4, 16, layout=layout))
    with pytest.raises(NotPossible, match="reorders the tokens of tiles"):
        token_grids(own, [(60, 30, 0)])


def test_tokens_that_belong_to_no_grid_are_refused():
    first, second = deal(np.arange(10.0), [[(2, 3), (2, 2)]])
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]] and second.tolist() == [[6, 7], [8, 9]]
    with pytest.raises(NotPossible, match="11 tokens and its views have 10"):
        deal(np.arange(11.0), [[(2, 3)], [(2, 2)]])
