"""The MLP connector: counts, pooling by hand, and LLaVA's projector."""

import math

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vlmkit_connectors import MLPConnector, VisionFeatures

MIXED = [(4, 4), (3, 5), (1, 7), (5, 1), (2, 2)]


def pooled_by_hand(patches_NV, grid, pool):
    """Means over pool x pool patches, or over those of them that the grid has."""
    rows, cols = grid
    image = patches_NV.view(rows, cols, -1)
    return torch.stack(
        [
            image[r : r + pool, c : c + pool].flatten(0, 1).mean(0)
            for r in range(0, rows, pool)
            for c in range(0, cols, pool)
        ]
    )


def test_pool_with_numbers():
    """A 2 x 3 grid of 0..5, pooled by 2: the mean of 0 1 3 4, and of 2 5 at the edge."""
    connector = MLPConnector([1], 1, depth=1, pool=2)
    connector.layers[0].weight.data.fill_(1.0)
    connector.layers[0].bias.data.zero_()
    grid = VisionFeatures(torch.arange(6.0).view(6, 1), torch.tensor([[2, 3]]), torch.tensor([0]))
    output = connector([grid])
    assert output.tokens_ND.flatten().tolist() == [2.0, 3.5]
    assert output.counts == (2,)


@pytest.mark.parametrize("pool", [1, 2, 3, 8])
@pytest.mark.parametrize("grids", [MIXED, [(5, 3)] * 3, [(1, 1)]])
def test_tokens_and_counts_of_any_grids(grids, pool, features):
    connector = MLPConnector([6], 8, pool=pool)
    seen = features(grids)
    output = connector([seen])
    by_hand = [pooled_by_hand(view, grid, pool) for view, grid in zip(seen.views(), grids)]
    assert output.counts == tuple(len(view) for view in by_hand)
    assert output.counts == tuple(math.ceil(r / pool) * math.ceil(c / pool) for r, c in grids)
    assert output.counts == tuple(connector.num_tokens(grid) for grid in grids)
    assert torch.allclose(output.tokens_ND, connector.layers(torch.cat(by_hand)), atol=1e-6)


@pytest.fixture
def llava(roughen):
    vision, text = (
        CLIPVisionConfig(hidden_size=6, num_attention_heads=1),
        LlamaConfig(hidden_size=8, num_attention_heads=1),
    )
    return roughen(LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text)))


def test_it_equals_llavas_projector(llava, features):
    connector = MLPConnector([6], 8)
    connector.layers[0].load_state_dict(llava.linear_1.state_dict())
    connector.layers[2].load_state_dict(llava.linear_2.state_dict())
    seen = features([(4, 4)])
    theirs = llava(seen.patches_TV)
    assert torch.equal(connector([seen]).tokens_ND, theirs)
    connector.layers[1] = torch.nn.GELU("tanh")
    assert (connector([seen]).tokens_ND - theirs).abs().max() > 1e-4


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_counts_linear_layers_with_gelu_between(depth):
    names = [type(layer).__name__ for layer in MLPConnector([6], 8, depth=depth).layers]
    assert names == (["Linear", "GELU"] * depth)[:-1]


@pytest.mark.parametrize(
    ("grids", "owners"), [([[2, 2]], [0]), ([[2, 3], [1, 1]], [0, 1]), ([[2, 3]], [0, 1])]
)
def test_features_that_contradict_their_grids_are_refused(grids, owners):
    with pytest.raises(ValueError, match=r"state . patches, the encoder gave 6"):
        VisionFeatures(torch.zeros(6, 1), torch.tensor(grids), torch.tensor(owners))


def test_the_first_hidden_layer_can_be_wider():
    """Prismatic's `fused-gelu-mlp`: four times the fused width, then the language model's, three layers."""
    layers = MLPConnector([6, 4], 8, depth=3, expansion=4).layers
    assert [(m.in_features, m.out_features) for m in layers[::2]] == [(10, 40), (40, 8), (8, 8)]
    assert all(isinstance(m, torch.nn.GELU) for m in layers[1::2])
