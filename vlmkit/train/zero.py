"""DeepSpeed's ZeRO behind the interface of an optimiser: accumulate, look at the gradient, then step.

Each process keeps a share of AdamW's moments, in stage 2 of a step's gradient, in stage 3 of parameters, too.
Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054. accelerate's own way with DeepSpeed steps within
the backward pass; here its engine is asked for each by itself, so that a step can be left out.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vlmkit.errors import VlmkitError
from vlmkit.train.devices import sum_dtype
from vlmkit.train.zero_shares import gradient_share, set_moment, spoil_gradient, whole_moment

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroOptimizer:
    """An AdamW whose moments are shares, in terms of whole parameters; every process asks for the same.

    DeepSpeed's engine clips and steps at once; until `step` is called nothing has changed.

    Args:
        engine: DeepSpeed's.
        groups: Of the optimiser as they were before.
        accelerator: The processes.

    Attributes:
        param_groups: As those of torch's optimisers; what is set in them holds for the next step.
    """

    def __init__(self, engine: Any, groups: list[dict[str, Any]], accelerator: Accelerator) -> None:
        self.engine = engine
        self.param_groups = groups
        self.accelerator = accelerator
        self._holds_gradient = False
        self._holding = ExitStack()
        stage3 = hasattr(engine.optimizer, "fp32_partitioned_groups_flat")
        zero = engine.optimizer
        self._flat = zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups
        self._make_moments()

    def _make_moments(self) -> None:
        """As AdamW does in its first step: so that they are there to be read and written."""
        adamw = self.engine.optimizer.optimizer
        for flat in self._flat:
            moments = {name: torch.zeros_like(flat, requires_grad=False) for name in MOMENTS}
            adamw.state[flat] = {"step": torch.zeros((), dtype=torch.float32, device=flat.device), **moments}
        if hasattr(self.engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of a micro-batch; after the last one of a step it is that of all processes.

        Until then it stays in its process. DeepSpeed by itself adds gradients up as they come, and they come
        in another order where a process has no image: it would add up those of different parameters.
        """
        if not self._holds_gradient:
            self._holding.enter_context(self.engine.coalesce_grad_reduction())
        self._holds_gradient = True
        self.engine.backward(loss, scale_wrt_gas=False)
        if last:
            self._holding.close()

    def part_norms(self) -> dict[str, float]:
        """Norm of the gradient by the names of the groups, after the last `backward` and before `step`."""
        shares: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            own = (gradient_share(p) for p in group["params"])
            shares.setdefault(group["name"], []).extend(share for share in own if share is not None)
        device = self.accelerator.device
        norms = [torch.nn.utils.get_total_norm(own).to(device, sum_dtype(device)) for own in shares.values()]
        squares = self.accelerator.reduce(torch.stack(norms).square())
        return dict(zip(shares, squares.sqrt().tolist(), strict=True))

    def step(self) -> None:
        """Clip, and update the parameters.

        Raises:
            VlmkitError: DeepSpeed did not.
        """
        for own, flat in zip(self.param_groups, self.engine.optimizer.param_groups, strict=True):
            flat.update({key: value for key, value in own.items() if key != "params"})
        self.engine.step()
        self._holds_gradient = False
        if not self.engine.was_step_applied():
            raise VlmkitError("DeepSpeed left out a step: the gradient is too large for it; lower the rate")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient of a step that is not taken: DeepSpeed does so where its norm is no number."""
        if not self._holds_gradient:
            return
        for parameter in self._params:
            spoil_gradient(parameter)
        # Of gradients in main memory it has taken the norms before.
        norms = getattr(self.engine.optimizer, "norm_for_param_grads", {})
        norms.update({key: torch.tensor(math.nan) for key in norms})
        self.engine.step()
        self._holds_gradient = False
        if self.engine.was_step_applied():
            raise VlmkitError("DeepSpeed took a step that was to be left out; go on from the last checkpoint")

    def whole(self, keep: bool) -> dict[str, Any]:
        """What `torch.optim.AdamW.state_dict` of one process gives, on the CPU.

        Args:
            keep: Whether this process wants it.
        """
        adamw, state = self.engine.optimizer.optimizer, {}
        step = adamw.state[self._flat[0]]["step"]
        for number, parameter in enumerate(self._params):
            own = {name: whole_moment(parameter, name) for name in MOMENTS}
            if keep:
                moments = {name: value.cpu().clone() for name, value in own.items()}
                state[number] = {"step": step.cpu().clone(), **moments}
        groups, first = [], 0
        for group in self.param_groups:
            after = first + len(group["params"])
            groups.append({**group, "params": list(range(first, after))})
            first = after
        return {"state": state, "param_groups": groups}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `whole`, or an AdamW of any number of processes, gave."""
        for own, stored in zip(self.param_groups, state["param_groups"], strict=True):
            own.update({key: value for key, value in stored.items() if key != "params"})
        step = None
        for parameter, values in zip(self._params, state["state"].values(), strict=False):
            step = values["step"]
            for name in MOMENTS:
                set_moment(parameter, values[name], name)
        # An AdamW that has not stepped has no state.
        for flat in self._flat if step is not None else ():
            self.engine.optimizer.optimizer.state[flat]["step"].copy_(step)
