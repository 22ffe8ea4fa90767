"""Numbers lent to a copy: in memory once, and taken back as they then are."""

import torch

from vlmkit.train.lend import lend, take_back
from vlmkit.train.module import StageModule
from vlmkit.train.stage import apply_stage


def parameters(module):
    """By every name, so that tied ones are there twice."""
    return dict(module.named_parameters(remove_duplicate=False))


def test_the_copy_has_the_memory_and_the_module_none(tiny_vlm, make_stage, samples, collate):
    model, stage = (
        tiny_vlm(llm_options={"tie_word_embeddings": True}),
        make_stage(train={"llm": {"lr": 1e-3}}),
    )
    apply_stage(model, stage)
    module = StageModule(model, stage).eval()
    batch = collate(model, samples)
    with torch.no_grad():
        before = float(module(batch)["next_token"][0])
    own = parameters(module)
    facts = {name: (p.data_ptr(), p.shape, p.dtype, p.requires_grad) for name, p in own.items()}
    assert len({id(p) for p in own.values()}) < len(own), "none is tied, or nothing was tried"

    borrower = lend(module)
    lent = parameters(borrower)
    assert {n: (p.data_ptr(), p.shape, p.dtype, p.requires_grad) for n, p in lent.items()} == facts
    assert len({id(p) for p in lent.values()}) == len({id(p) for p in own.values()})
    assert not {id(m) for m in borrower.modules()} & {id(m) for m in module.modules()}
    assert max(p.untyped_storage().nbytes() for p in own.values()) <= 8
    assert all((p.shape, p.dtype) == facts[name][1:3] for name, p in own.items())
    with torch.no_grad():
        assert float(borrower(batch)["next_token"][0]) == before
        for parameter in borrower.parameters():
            parameter += 0.1

    take_back(module, borrower)
    assert all(p is own[name] for name, p in parameters(module).items()), (
        "who holds a parameter holds it still"
    )
    assert all(torch.equal(p, lent[name]) for name, p in own.items())
    assert {name: p.requires_grad for name, p in own.items()} == {n: fact[3] for n, fact in facts.items()}
    with torch.no_grad():
        after = float(module(batch)["next_token"][0])
        assert after == float(borrower(batch)["next_token"][0]) and abs(after - before) > 1e-3
