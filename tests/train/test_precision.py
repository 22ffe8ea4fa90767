"""A precision that the device cannot compute in is not pretended, and losses are in float32 in any."""

import pytest
import torch

from vlmkit.objectives import IGNORE, ContrastiveHead
from vlmkit.train import precision
from vlmkit.train.head import SupervisedHead
from vlmkit.train.precision import mixed_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "able", "mixed", "says"),
    [
        ("fp32", True, "no", "as the recipe says"),
        ("auto", True, "bf16", "bfloat16 with float32 weights on cpu"),
        ("auto", False, "no", "this cpu has no bfloat16 instructions"),
        ("bf16", True, "bf16", "bfloat16"),
        ("bf16", False, "no", "the recipe asks for bf16, and this cpu has no bfloat16 instructions"),
    ],
)
def test_the_choice_and_its_reason(monkeypatch, wanted, able, mixed, says):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: able)
    chosen, reason = mixed_precision(wanted, CPU)
    assert chosen == mixed and says in reason


@pytest.mark.parametrize("chunk", [4, 1024])
def test_the_next_token_loss_is_in_float32_under_autocast(tiny_vlm, chunk):
    """That of the bfloat16 logits as they are, to the last digits of float32, in chunks and whole."""
    model = tiny_vlm()
    ids = torch.randint(
        5, len(model.processor.tokenizer), (3, 17), generator=torch.Generator().manual_seed(0)
    )
    labels, weights = ids.clone(), torch.ones(3, 17)
    labels[:, ::2] = IGNORE
    head = SupervisedHead(model.get_output_embeddings(), chunk)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for _ in range(2):  # by the first one it learns whether it may cut the logits into chunks
            loss, weight = head.loss(lambda: model.language_model(input_ids=ids), labels, weights)
        logits = model.language_model(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16 and loss.dtype == weight.dtype == torch.float32
    kept, targets = labels[:, 1:] != IGNORE, labels[:, 1:]
    exact = -logits[:, :-1][kept].double().log_softmax(-1).gather(1, targets[kept][:, None]).sum()
    rough = -logits[:, :-1][kept].log_softmax(-1).gather(1, targets[kept][:, None]).sum()
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)
    assert abs(float(rough) - float(exact)) > 1e-4 * float(exact), "bfloat16 would be seen"


def test_the_contrastive_loss_is_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(8, 16, generator=generator) for _ in range(2))
    head, own = ContrastiveHead(), torch.eye(8, dtype=torch.bool)
    wanted, _ = head(image, text, own)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = head(image, text, own)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
