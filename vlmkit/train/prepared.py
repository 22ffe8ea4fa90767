"""A stage's module and optimiser as processes share them; DeepSpeed's steps are taken in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from vlmkit.train.distribute import whole
from vlmkit.train.zero import ZeroOptimizer
from vlmkit.train.zero_engine import shard

if TYPE_CHECKING:
    from vlmkit.train.module import StageModule


def prepare(
    module: StageModule, optimizer: torch.optim.Optimizer, accelerator: Accelerator, clip: float
) -> Any:
    """A module and its optimiser as the processes of a run share them.

    Args:
        module: Of a stage.
        optimizer: Over its parameters.
        accelerator: The processes.
        clip: Largest norm of the gradient, which DeepSpeed asks for beforehand.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return shard(module, optimizer, accelerator, clip)
    return accelerator.prepare(module, optimizer)


def held_back(wrapped: Any, optimizer: Any, accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Inside, gradients of a micro-batch stay with their process; DeepSpeed is told in `backward` instead."""
    return nullcontext() if isinstance(optimizer, ZeroOptimizer) else accelerator.no_sync(wrapped)


def backward(loss: Tensor, optimizer: Any, accelerator: Accelerator, last: bool) -> None:
    """Add the gradient of a micro-batch.

    Args:
        loss: Of this process, times the number of them: the mean over processes is taken.
        optimizer: As it was prepared.
        accelerator: The processes.
        last: Whether it is the last micro-batch of the step.
    """
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.backward(loss, last)
    else:
        accelerator.backward(loss)


def clip_gradient(wrapped: Any, accelerator: Accelerator, most: float, norms: Mapping[str, float]) -> float:
    """The norm of the gradient of all processes, which is cut to `most`: here, or in DeepSpeed's step.

    Args:
        wrapped: The module as it was prepared.
        accelerator: The processes.
        most: Largest norm.
        norms: Of the gradient's parts, which together are all that DeepSpeed's is known by.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return math.hypot(*norms.values())
    return float(whole(accelerator.clip_grad_norm_(wrapped.parameters(), most)))
