"""A module's numbers lent to a copy that is cut into shares, and taken back whole.

There is no way back from shares to a module, and no room for a module beside its copy: only one of both has
the numbers.
"""

from __future__ import annotations

import copy

import torch

from vlmkit.train.distribute import whole
from vlmkit.train.module import StageModule


def lend(module: StageModule) -> StageModule:
    """A copy of the module that has its parameters' memory; the module keeps their shapes and no numbers.

    Buffers are copied: they are small, and never cut.

    Args:
        module: Not to be used until `take_back`, or at all where an error comes before.
    """
    lent = {id(p): copy.copy(p) for p in module.parameters()}
    borrower = copy.deepcopy(module, lent)
    for parameter in module.parameters():
        # Not on the meta device: a parameter cannot change its kind of device and stay the same object.
        parameter.data = parameter.new_zeros(()).expand(parameter.shape)
    return borrower


def take_back(module: StageModule, borrower: StageModule) -> None:
    """Give a module the numbers of the copy that `lend` made: all processes must ask.

    Args:
        module: Gets every parameter, where it was and of the type that it was.
        borrower: May be shares; buffers stay with it.
    """
    parts = dict(borrower.named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            complete = whole(parts[name]).detach()
            parameter.data = complete.to(parameter.device, parameter.dtype)
