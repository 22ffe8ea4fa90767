"""The linear connector: PaliGemma's projector, and what its language model gets."""

import pytest
import torch
from transformers import PaliGemmaConfig, PaliGemmaModel

from vlmkit_connectors import LinearConnector, VisionFeatures

IMAGE = 30


@pytest.fixture(scope="module")
def paligemma(roughen):
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "image_size": 8, "patch_size": 4, "projection_dim": 8,
        "vision_use_head": False,
    }  # fmt: skip
    text = {
        "model_type": "gemma", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    }  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=8, image_token_id=IMAGE, hidden_size=8
    )
    return roughen(PaliGemmaModel(config)).eval()


@pytest.mark.parametrize("wrong", [0.0, 1e-3])
@torch.no_grad()
def test_it_equals_paligemmas(paligemma, wrong):
    """Its projector, and what its Gemma gets at the image's places: nothing is scaled on the way."""
    connector = LinearConnector([6], 8)
    connector.linear.load_state_dict(paligemma.multi_modal_projector.linear.state_dict())
    connector.linear.bias += wrong
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    patches = paligemma.vision_tower(pixels).last_hidden_state
    seen = VisionFeatures(patches.flatten(0, 1), torch.tensor([[2, 2]] * 2), torch.arange(2))
    ours = connector([seen])
    assert ours.counts == (4, 4)
    ids = torch.tensor([[IMAGE] * 4 + [1, 2]] * 2)
    given = paligemma(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states[0]
    words = paligemma.get_input_embeddings().weight[ids[:, 4:]] * 8**0.5
    assert (given[:, 4:] - words).abs().max() < 1e-5
    projected = paligemma.multi_modal_projector(patches).flatten(0, 1)
    for theirs in (projected, given[:, :4].flatten(0, 1)):
        assert ((ours.tokens_ND - theirs).abs().max() < 1e-5) == (wrong == 0)


def test_a_bias_is_an_option(features):
    assert LinearConnector([6], 8).linear.bias is not None
    bare = LinearConnector([6], 8, bias=False)
    assert [name for name, _ in bare.named_parameters()] == ["linear.weight"]
    empty = VisionFeatures(torch.zeros(6, 6), torch.tensor([[2, 3]]), torch.tensor([0]))
    assert not bare([empty]).tokens_ND.any()
    assert bare.token_grid((2, 3)) == (2, 3)
