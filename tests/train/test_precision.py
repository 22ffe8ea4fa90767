"""A precision that the device cannot compute in is not pretended."""

import pytest
import torch

from vlmkit.train import precision
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
