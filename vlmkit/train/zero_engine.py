"""A stage's module as DeepSpeed's engine, which calls it and keeps the shares of its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from vlmkit.errors import UsageError
from vlmkit.train.zero import ZeroOptimizer

if TYPE_CHECKING:
    from vlmkit.train.module import StageModule


def shard(
    module: StageModule, optimizer: torch.optim.Optimizer, accelerator: Accelerator, clip: float
) -> tuple[Any, ZeroOptimizer]:
    """Cut a module's training into shares.

    Args:
        module: In float32; there is no way back to it from shares.
        optimizer: An AdamW over its parameters.
        accelerator: Made with DeepSpeed.
        clip: Largest norm of the gradient.

    Returns:
        DeepSpeed's engine, which is called as the module is, and the optimiser.

    Raises:
        UsageError: A parameter has another type.
    """
    _quieten()
    kinds = {str(p.dtype) for p in module.parameters()} - {"torch.float32"}
    if kinds:
        raise UsageError(
            f"DeepSpeed trains float32 weights here, not {', '.join(sorted(kinds))}; use multi_gpu"
        )
    accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = clip
    groups = [dict(group) for group in optimizer.param_groups]
    engine, _ = accelerator.prepare(module, optimizer)
    if engine.zero_optimization_partition_weights():
        _keep_whole(_outside_language_model(module), engine.optimizer)
    return engine, ZeroOptimizer(engine, groups, accelerator)


def _quieten() -> None:
    """One voice; and no compiler where processes talk by gloo, which does without DeepSpeed's own kernel."""
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _keep_whole(modules: list[nn.Module], optimizer: Any) -> None:
    """Gather what these modules hold now and after each step, and let DeepSpeed do nothing about them else.

    Stage 3 wants the same modules to run in the same order in all processes. How often encoders run depends
    on a process's images; and results that are dataclasses hide their tensors from it.
    """
    offload = optimizer.parameter_offload
    theirs = {id(hooks) for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)}
    for handle in (*offload.forward_hooks, *offload.backward_hooks):
        if id(handle.hooks_dict_ref()) in theirs:
            handle.remove()
    whole: list[Any] = optimizer.persistent_parameters
    held: list[Any] = [p for module in modules for p in module.parameters(recurse=False)]
    for parameter in held:
        if not parameter.ds_persist:
            parameter.ds_persist = True
            whole.append(parameter)
    if whole:
        whole[0].all_gather(whole)


def _outside_language_model(module: StageModule) -> list[nn.Module]:
    inside = {id(m) for m in module.vlm.language_model.modules()}
    return [m for m in module.modules() if id(m) not in inside]
