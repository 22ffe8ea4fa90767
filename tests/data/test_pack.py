"""Prefix packing: what is shared, and that packed rows are worth exactly what unpacked rows are."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vlmkit.data.batch import text_tensors
from vlmkit.data.masks import additive, branch_mask
from vlmkit.data.pack import pack_prefix
from vlmkit.data.tokens import TokenRow


def row(ids, supervised_from):
    """Ids with weight 1 from an index on; an EOS-like last weight to tell them apart."""
    weights = [0.0] * supervised_from + [1.0] * (len(ids) - supervised_from)
    if weights[-1]:
        weights[-1] = 0.25
    return TokenRow(tuple(ids), tuple(weights))


QUESTIONS = [
    row([1, 9, 9, 9, 20, 21, 30, 2], 6),
    row([1, 9, 9, 9, 20, 22, 23, 31, 2], 7),
    row([1, 9, 9, 9, 24, 32, 2], 5),
]
CASES = {
    "questions": QUESTIONS,
    "one conversation": QUESTIONS[:1],
    "captions (answer right behind the image)": [row([1, 9, 9, 30, 31], 3), row([1, 9, 9, 30, 32, 33], 3)],
    "same question, same first answer word": [row([1, 9, 20, 30, 31, 2], 3), row([1, 9, 20, 30, 32, 2], 3)],
    "equal conversations": [QUESTIONS[0], QUESTIONS[0]],
    "one is the start of another": [row([1, 9, 20], 3), row([1, 9, 20, 30, 2], 3)],
    "only BOS shared": [row([1, 20, 30, 2], 2), row([1, 21, 31, 2], 2)],
    "nothing shared": [row([5, 20, 30, 2], 2), row([6, 21, 31, 2], 2)],
    "supervised from the first token": [row([20, 30, 2], 0), row([21, 31, 2], 0)],
}


def test_questions_by_hand():
    packed = pack_prefix(QUESTIONS)
    assert packed.ids == (1, 9, 9, 9, 20, 21, 30, 2, 20, 22, 23, 31, 2, 24, 32, 2)
    assert packed.branches == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3)
    assert packed.positions == (0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 4, 5, 6)
    assert packed.weights == (0, 0, 0, 0, 0, 0, 1, 0.25, 0, 0, 0, 1, 0.25, 0, 1, 0.25)


def test_one_row_is_all_prefix():
    packed = pack_prefix(QUESTIONS[:1])
    assert packed.ids == QUESTIONS[0].ids and packed.weights == QUESTIONS[0].weights
    assert set(packed.branches) == {0}
    assert packed.positions == tuple(range(8))


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_every_branch_starts_unsupervised_and_the_prefix_is_unsupervised(rows):
    packed = pack_prefix(rows)
    starts = [i for i in range(1, len(packed.ids)) if packed.branches[i] != packed.branches[i - 1]]
    assert not any(packed.weights[i] for i in starts)
    if len(rows) > 1:
        assert set(packed.branches) - {0} == set(range(1, len(rows) + 1))
        assert not any(w for w, b in zip(packed.weights, packed.branches) if b == 0)


def test_the_prefix_reaches_the_last_image_token_unless_the_answer_follows_it():
    assert pack_prefix(QUESTIONS).branches.count(0) == 4
    assert pack_prefix(CASES["captions (answer right behind the image)"]).branches.count(0) == 2


def test_mask_by_hand():
    mask = branch_mask(torch.tensor([[0, 1, 2, 2, -1, -1]]))
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    added = additive(mask, torch.bfloat16)
    assert added.dtype == torch.bfloat16
    assert torch.equal(added == 0, mask)
    assert added.min() == torch.finfo(torch.bfloat16).min


@pytest.fixture(params=["sdpa", "eager"])
def llama(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            attn_implementation=request.param,
        )
        return LlamaForCausalLM(config).eval()


def logits(model, rows):
    """Logits of packed rows in one padded batch, with the batch's tensors."""
    batch = text_tensors(rows, pad_id=0)
    mask = branch_mask(batch["branches_BL"])
    if model.config._attn_implementation == "eager":
        mask = additive(mask, torch.float32)
    out = model(batch["input_ids_BL"], attention_mask=mask, position_ids=batch["positions_BL"])
    return out.logits, batch


def loss(model, rows):
    scores, batch = logits(model, rows)
    targets, weights = batch["labels_BL"][:, 1:], batch["weights_BL"][:, 1:]
    losses = torch.nn.functional.cross_entropy(scores[:, :-1].transpose(1, 2), targets, reduction="none")
    return (losses * weights).sum(), weights.sum()


@torch.no_grad()
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_packed_logits_are_the_unpacked_ones(llama, rows):
    packed = pack_prefix(rows)
    longer = pack_prefix([TokenRow((3,) * 30, (0.0,) * 30)])
    scores = logits(llama, [packed, longer])[0]
    assert torch.isfinite(scores).all()
    for k, own in enumerate(rows, 1):
        mine = [i for i, branch in enumerate(packed.branches) if branch in (0, k)]
        alone = llama(torch.tensor([own.ids])).logits[0]
        assert (scores[0, mine] - alone).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_packed_loss_is_the_unpacked_loss(llama, rows):
    """The shifted loss: fails if a branch's first token is supervised or a label has a wrong predecessor."""
    total, weight = loss(llama, [pack_prefix(rows)])
    expected, expected_weight = loss(llama, [pack_prefix([own]) for own in rows])
    assert weight == expected_weight > 0 or not any(any(own.weights) for own in rows)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
