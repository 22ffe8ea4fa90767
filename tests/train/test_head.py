"""Logits at supervised positions only: the loss and the gradients are those of all positions."""

import pytest
import torch

from vlmkit.objectives import IGNORE, token_loss
from vlmkit.train.head import SupervisedHead

# Plain heads, tied and not; capped and scaled logits.
FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2", "opt")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_vlm):
    return tiny_vlm(request.param)


@pytest.fixture(scope="module")
def batch(model):
    """Ids, labels at a third of the positions, and weights."""
    torch.manual_seed(0)
    ids = torch.randint(5, len(model.processor.tokenizer), (3, 17))
    labels = torch.where(torch.rand(3, 17) < 0.35, ids, IGNORE)
    return ids, labels, torch.rand(3, 17)


def naive(model, ids, labels, weights):
    return token_loss(model.language_model(input_ids=ids, use_cache=False).logits, labels, weights)


def ours(model, ids, labels, weights, chunk):
    head = SupervisedHead(model.get_output_embeddings(), chunk)

    def decode():
        return model.language_model(input_ids=ids, use_cache=False)

    head.loss(decode, labels, weights)  # by the first one it learns whether the family changes logits
    return head.loss(decode, labels, weights)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.language_model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 4, 7, 1024])
def test_loss_and_gradients_are_those_of_all_positions(model, batch, chunk):
    (wanted, weight), (found, own) = naive(model, *batch), ours(model, *batch, chunk)
    assert torch.equal(weight, own) and abs(float(found - wanted)) <= 1e-6 * float(wanted.detach())
    one, other = gradients(model, wanted), gradients(model, found)
    assert one.keys() == other.keys()
    largest = max(gradient.abs().max() for gradient in one.values())
    assert all((one[name] - other[name]).abs().max() <= 1e-6 * largest for name in one)


def test_the_head_meets_supervised_positions_only(model, batch):
    ids, labels, _ = batch
    rows = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    supervised = int((labels[:, 1:] != IGNORE).sum())
    assert 0 < supervised < ids.numel() / 2
    ours(model, *batch, chunk=1024)
    assert set(rows) == {supervised}
    rows.clear()
    ours(model, *batch, chunk=4)
    handle.remove()
    whole_ones, later = rows[:2], rows[2:]
    assert whole_ones == [supervised] * 2
    # A model that caps its logits is asked for all of them; else one for the graph, then chunks.
    capped = model.config.text_config.model_type == "gemma2"
    whole, rest = divmod(supervised, 4)
    assert later == ([supervised] if capped else [1, *[4] * whole, *[rest] * bool(rest)])


def test_nothing_stays_on_the_head(model, batch):
    ours(model, *batch, chunk=4)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_it_cannot_fail_silently_on_a_shifted_label(model, batch):
    ids, labels, weights = batch
    wanted, _ = naive(model, *batch)
    moved, _ = ours(model, ids, labels.roll(1, 1), weights, 1024)
    assert abs(float(moved - wanted)) > 1e-3
