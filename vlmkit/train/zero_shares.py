"""One parameter among DeepSpeed's shares: the whole of it, and this process's part.

Stages 1 and 2 flatten the parameters of a group into one tensor, of which each process optimises a part: all
of a parameter, some of it, or nothing. Stage 3 cuts each parameter by itself and knows it by `ds_tensor`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def whole_parameter(parameter: Tensor) -> Tensor:
    """A parameter with the shares of all processes, where it has been cut into some.

    One that does not train is cut into shares again behind it, also if it was kept whole: that is for the
    end of a stage.
    """
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if not parameter.requires_grad:
        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    full: Tensor = safe_get_full_fp32_param(parameter)
    return full


def gradient_share(parameter: Any) -> Tensor | None:
    """This process's part of a gradient, flat, without what fills shares up to one length; None for none.

    It is there after the backward pass of a step's last micro-batch, and until the step.
    """
    if hasattr(parameter, "ds_tensor"):
        from deepspeed.utils import safe_get_local_grad

        share: Tensor = safe_get_local_grad(parameter).flatten()
        before = share.numel() * torch.distributed.get_rank()
        return share[: max(0, parameter.ds_numel - before)]
    place = parameter._hp_mapping
    return None if place is None else place.get_lp_grad_fragment(parameter._index_in_param_group)


def spoil_gradient(parameter: Any) -> None:
    """Make this process's part of a gradient no number."""
    if hasattr(parameter, "ds_tensor"):
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(parameter, torch.full_like(parameter.ds_tensor, math.nan))
    else:
        share = gradient_share(parameter)
        if share is not None:
            share.fill_(math.nan)


def whole_moment(parameter: Any, name: str) -> Tensor:
    """A moment of AdamW's, with the shares of all processes: they must all ask for it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    full: Tensor = safe_get_full_optimizer_state(parameter, name)
    return full


def set_moment(parameter: Any, value: Tensor, name: str) -> None:
    """Give each process its part of a whole moment of AdamW's."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_tensor"):
        safe_set_full_optimizer_state(parameter, value, name)
        return
    # The whole one cannot be given where shares have been filled up to the same length.
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    own = value.flatten()[size * rank : size * (rank + 1)]
    safe_set_local_optimizer_state(parameter, F.pad(own, (0, size - own.numel())), name)
