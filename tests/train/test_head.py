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
    return head.loss(lambda: model.language_model(input_ids=ids, use_cache=False), labels, weights)


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
    # Two rows tell whether the family changes logits.
    ours(model, *batch, chunk=1024)
    assert rows == [1, 1, supervised]
    rows.clear()
    ours(model, *batch, chunk=4)
    handle.remove()
    # A model that caps its logits is asked for all of them; else, from the first batch on, one for the graph,
    # then chunks.
    capped = model.config.text_config.model_type == "gemma2"
    whole, rest = divmod(supervised, 4)
    assert rows[2:] == ([supervised] if capped else [1, *[4] * whole, *[rest] * bool(rest)])


def test_what_a_family_does_to_logits_does_not_depend_on_the_first_batch(model, batch):
    """NaN in it would switch chunks off for good, in this run and not in a resumed one."""
    ids, labels, weights = batch
    capped = model.config.text_config.model_type == "gemma2"
    broken = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: output * torch.nan
    )
    head = SupervisedHead(model.get_output_embeddings(), 4)

    def decode():
        return model.language_model(input_ids=ids, use_cache=False)

    loss, _ = head.loss(decode, labels, weights)
    broken.remove()
    assert loss.isnan() and head._plain is not capped
    none = SupervisedHead(model.get_output_embeddings(), 4)
    none.loss(decode, torch.full_like(labels, IGNORE), weights)
    assert none._plain is not capped


def test_asking_draws_nothing_and_leaves_every_mode_as_it_was(model, batch):
    ids, _, _ = batch
    output = model.get_output_embeddings()

    class Dropping(torch.nn.Module):
        """A head with an adapter's dropout."""

        def __init__(self):
            super().__init__()
            self.base, self.drop, self.frozen = output, torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval()
            self.weight = output.weight

        def forward(self, hidden):
            return self.base(self.frozen(self.drop(hidden)))

    adapted = Dropping()
    model.language_model.set_output_embeddings(adapted)
    try:
        head = SupervisedHead(adapted, 1024)
        before = torch.get_rng_state()
        head._plain = head._does_nothing_after(lambda: model.language_model(input_ids=ids, use_cache=False))
        assert torch.equal(before, torch.get_rng_state())
    finally:
        model.language_model.set_output_embeddings(output)
    assert head._plain is (model.config.text_config.model_type != "gemma2")
    assert adapted.training and adapted.drop.training and not adapted.frozen.training


def test_nothing_stays_on_the_head(model, batch):
    ours(model, *batch, chunk=4)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_it_cannot_fail_silently_on_a_shifted_label(model, batch):
    ids, labels, weights = batch
    wanted, _ = naive(model, *batch)
    moved, _ = ours(model, ids, labels.roll(1, 1), weights, 1024)
    assert abs(float(moved - wanted)) > 1e-3
