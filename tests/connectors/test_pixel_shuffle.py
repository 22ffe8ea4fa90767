"""Pixel shuffle: InternVL's, Idefics3's and SmolVLM's, and edges of grids by hand."""

import pytest
import torch
from transformers import Idefics3Config, InternVLConfig, InternVLModel, SmolVLMConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector

from vlmkit_connectors import PixelShuffleConnector, VisionFeatures
from vlmkit_connectors.pixel_shuffle import pixel_shuffle

IDEFICS = [(Idefics3Config, Idefics3Connector), (SmolVLMConfig, SmolVLMConnector)]


def internvl(factor):
    config = InternVLConfig(
        vision_config={"hidden_size": 6, "num_attention_heads": 1, "num_hidden_layers": 1},
        text_config={"model_type": "qwen2", "hidden_size": 8, "num_attention_heads": 1},
        downsample_ratio=1 / factor,
    )
    return InternVLMultiModalProjector(config)


def idefics(config, connector, factor):
    built = config(
        vision_config={"hidden_size": 6, "num_attention_heads": 1},
        text_config={"model_type": "llama", "hidden_size": 8, "num_attention_heads": 1},
        scale_factor=factor,
    )
    return connector(built)


def their_shuffle(patches_IRCV, factor):
    return InternVLModel.pixel_shuffle(None, patches_IRCV, 1 / factor).flatten(1, 2)


def images(grid, width=6, views=2):
    return torch.randn(views, *grid, width, generator=torch.Generator().manual_seed(2))


def as_features(patches_IRCV):
    views, *grid, _ = patches_IRCV.shape
    return VisionFeatures(patches_IRCV.flatten(0, 2), torch.tensor([grid] * views), torch.arange(views))


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("grid", [(8, 8), (4, 8), (8, 4), (12, 4), (4, 4)])
@torch.no_grad()
def test_it_equals_internvls(roughen, grid, factor):
    theirs, patches = roughen(internvl(factor)), images(grid)
    connector = PixelShuffleConnector([6], 8, factor=factor)
    names = {"0": "layer_norm", "1": "linear_1", "3": "linear_2"}
    for ours, name in names.items():
        connector.projector.get_submodule(ours).load_state_dict(theirs.get_submodule(name).state_dict())
    expected = theirs(their_shuffle(patches, factor)).flatten(0, 1)
    given = connector([as_features(patches)])
    assert given.counts == (len(expected) // 2,) * 2
    assert (given.tokens_ND - expected).abs().max() < 1e-5
    connector.projector[2] = torch.nn.GELU("tanh")
    assert (connector([as_features(patches)]).tokens_ND - expected).abs().max() > 1e-4


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize(("config", "original"), IDEFICS)
@torch.no_grad()
def test_it_equals_idefics3s_and_smolvlms(roughen, config, original, factor):
    theirs, patches = roughen(idefics(config, original, factor)), images((12, 12))
    connector = PixelShuffleConnector([6], 8, factor=factor, variant="idefics3")
    connector.projector.load_state_dict(theirs.modality_projection.proj.state_dict())
    expected = theirs(patches.flatten(1, 2)).flatten(0, 1)
    assert (connector([as_features(patches)]).tokens_ND - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("config", "original"), IDEFICS)
@pytest.mark.parametrize("factor", [2, 4])
def test_all_of_them_have_one_order(config, original, factor):
    """InternVL, Idefics3 and SmolVLM differ in the projector alone."""
    patches = images((8, 8))
    theirs = idefics(config, original, factor).pixel_shuffle(patches.flatten(1, 2), factor)
    assert torch.equal(their_shuffle(patches, factor), theirs)
    assert torch.equal(pixel_shuffle(patches, factor), theirs)


def test_version_1_of_internvl_is_another_order():
    """It leaves the grid transposed: the tokens are the same ones, in columns instead of rows."""
    patches = images((4, 8))
    ours = pixel_shuffle(patches, 2)
    version_1 = ours.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
    assert not torch.equal(version_1, their_shuffle(patches, 2))


def test_order_by_hand():
    """Rows of 0 1 2 3 and 4 5 6 7 in squares of 2, two channels a patch: the second is ten more."""
    numbers = torch.arange(8.0).view(1, 2, 4, 1)
    shuffled = pixel_shuffle(torch.cat([numbers, numbers + 10], -1), 2)
    assert shuffled.tolist() == [[[0, 10, 1, 11, 4, 14, 5, 15], [2, 12, 3, 13, 6, 16, 7, 17]]]


def test_edges_by_hand():
    """3 x 3 in squares of 2: the last row and column are repeated, the corner both ways."""
    numbers = torch.arange(9.0).view(1, 3, 3, 1)
    assert pixel_shuffle(numbers, 2).tolist() == [[[0, 1, 3, 4], [2, 2, 5, 5], [6, 7, 6, 7], [8, 8, 8, 8]]]
    row = torch.arange(4.0).view(1, 1, 4, 1)
    assert pixel_shuffle(row, 3).tolist() == [[[0, 1, 2] * 3, [3] * 9]]
    connector = PixelShuffleConnector([6], 8, factor=3)
    assert connector.token_grid((1, 4)) == (1, 2) and connector.token_grid((7, 6)) == (3, 2)


def test_a_grid_of_one_value_gives_equal_tokens_up_to_its_edge():
    """Repeated edges keep a constant a constant; zeros beside it would not."""
    connector = PixelShuffleConnector([6], 8, factor=2)
    patches = torch.randn(6, generator=torch.Generator().manual_seed(0)).expand(1, 3, 5, 6)
    tokens = connector([as_features(patches.contiguous())]).tokens_ND
    assert tokens.shape == (6, 8) and (tokens - tokens[0]).abs().max() < 1e-6
