"""What is captured is what the towers compute: against their output, their own formulas, and transformers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vlmkit.encoders.base import pixel_batch
from vlmkit.look.capture import attention_of

TOWERS = ("vit", "vit cls", "vit conv map", "clip", "siglip", "naflex", "dinov2")


def see(encoder, *images):
    with torch.no_grad(), attention_of(encoder) as calls:
        features = encoder(encoder.move(pixel_batch(encoder.spec, images)))
    return features, [call for call in calls if call.tokens[0] == call.tokens[1]]


def mix(call):
    """Probabilities times values: what attention gives."""
    share = call.heads // call.value_IHKA.shape[1]
    return call.probabilities() @ call.value_IHKA.repeat_interleave(share, dim=1)


@pytest.mark.parametrize("name", TOWERS)
def test_probabilities_times_values_are_the_output_and_nothing_changes(tower, gradient, name):
    encoder, images = tower(name), [gradient((60, 40)), gradient((30, 70), 1)]
    features, calls = see(encoder, *images)
    # Packed views are a call for each length.
    lengths = {len(view) for view in features.views()}
    assert len(calls) == 3 * len(lengths) and {call.heads for call in calls} == {4}
    for call in calls:
        assert torch.allclose(call.probabilities().sum(-1), torch.ones(()), atol=1e-6)
        assert (mix(call) - call.output_IHQA).abs().max() <= 1e-5
        # A flat distribution would pass much of the above.
        assert call.probabilities().std() * call.tokens[1] > 0.1
    with torch.no_grad():
        plain = encoder(encoder.move(pixel_batch(encoder.spec, images)))
    assert torch.equal(features.patches_TV, plain.patches_TV)
    assert torch.equal(features.pooled_BE, plain.pooled_BE)


def test_equal_to_the_eager_attention_of_transformers(tower, gradient):
    encoder = tower("clip")
    batch = encoder.move(pixel_batch(encoder.spec, [gradient((60, 40))]))
    config = CLIPVisionConfig(**encoder.vision.config.to_dict())
    reference = CLIPVisionModelWithProjection._from_config(config, attn_implementation="eager").eval()
    reference.load_state_dict(encoder.vision.state_dict())
    with torch.no_grad():
        wanted = reference(batch.pixels_ICHW, output_attentions=True).attentions
    _, calls = see(encoder, gradient((60, 40)))
    for call, own in zip(calls, wanted, strict=True):
        assert (call.probabilities() - own).abs().max() <= 1e-6


def test_equal_to_the_queries_and_keys_of_our_vit(tower, gradient):
    encoder, found = tower("vit"), []
    encoder.blocks[1].qkv.register_forward_hook(lambda module, inputs, output: found.append(output))
    _, calls = see(encoder, gradient((60, 40)))
    q, k, _ = found[0][0].split(32, dim=-1)
    heads = [F.softmax(q[:, s] @ k[:, s].T / 8**0.5, -1) for s in (slice(8 * h, 8 * h + 8) for h in range(4))]
    assert (calls[1].probabilities()[0] - torch.stack(heads)).abs().max() <= 1e-6


def test_views_of_unequal_length_are_calls_of_their_own(tower, gradient):
    wide, small = gradient((160, 40)), gradient((10, 30), 1)
    encoder = tower("naflex")
    features, calls = see(encoder, wide, small)
    _, alone = see(encoder, small)
    lengths = [len(view) for view in features.views()]
    assert lengths[0] != lengths[1] and len(calls) == 2 * len(alone) == 6
    own = [call for call in calls if call.tokens[0] == lengths[1]]
    for call, expected in zip(own, alone, strict=True):
        assert (call.probabilities() - expected.probabilities()).abs().max() <= 1e-5


class Attends(nn.Module):
    """Calls the attention function with the options it was given."""

    def forward(self, q, k, v, **options):
        return F.scaled_dot_product_attention(q, k, v, **options)


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.9},
    "boolean mask": {"attn_mask": torch.arange(30).view(1, 1, 5, 6) % 3 > 0},
    "added mask": {"attn_mask": torch.linspace(-3, 3, 6).view(1, 1, 1, 6)},
    "grouped heads": {"enable_gqa": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_the_function(name):
    generator = torch.Generator().manual_seed(0)
    heads = 2 if name == "grouped heads" else 4
    q, k, v = (torch.randn(2, h, n, 3, generator=generator) for h, n in ((4, 5), (heads, 6), (heads, 6)))
    if name == "causal":
        q = torch.randn(2, 4, 6, 3, generator=generator)
    module = Attends()
    with attention_of(module) as calls:
        output = module(q, k, value := v, **OPTIONS[name])
    assert torch.equal(calls[0].output_IHQA, output) and calls[0].value_IHKA is value
    assert (mix(calls[0]) - output).abs().max() <= 1e-6
    last = calls[0].probabilities(slice(-1, None))
    assert torch.equal(last, calls[0].probabilities()[:, :, -1:])


def test_only_the_module_that_is_asked_for_is_heard():
    asked, other, x = Attends(), Attends(), torch.ones(1, 1, 2, 2)
    with attention_of(asked) as calls:
        other(x, x, x)
        asked(x, x, x)
        other(x, x, x)
    asked(x, x, x)
    assert len(calls) == 1
    with pytest.raises(RuntimeError), attention_of(asked) as calls:
        asked(x, torch.ones(1, 1, 2, 5), x)
    asked(x, x, x)
    assert not calls and not asked._forward_hooks and not asked._forward_pre_hooks
