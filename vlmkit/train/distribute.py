"""Several processes through accelerate alone: which kinds there are, and what they must do together.

DDP keeps a whole model in each process; FSDP2 keeps a share of every parameter, a `DTensor`, which is whole
only while it computes; DeepSpeed's ZeRO (see `zero`) keeps shares of its own kind. What is written to disk is
always whole, so any number of processes reads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from vlmkit.errors import UsageError, VlmkitError
from vlmkit.train import zero_config
from vlmkit.train.zero import ZeroOptimizer
from vlmkit.train.zero_shares import whole_parameter

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
SUPPORTED = (DistributedType.NO, *SHARDED)
# Far from the seeds of stages, which are a run's own and small numbers above it.
RANK_SEED = 1_000_003


def process_state() -> PartialState:
    """This process among the others; on a machine without accelerators they talk by gloo.

    Raises:
        MissingExtraError: DeepSpeed was asked for and is not installed.
    """
    zero_config.require_deepspeed()
    wanted = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return PartialState(cpu=wanted or not torch.accelerator.is_available())


def make_accelerator(mixed_precision: str) -> Accelerator:
    """The accelerator of a run, of what `accelerate launch` was told.

    Args:
        mixed_precision: `no` or `bf16`.

    Raises:
        UsageError: It was told something that no test covers.
    """
    cpu = process_state().device.type == "cpu"
    # Each process assembles the whole model itself; transformers would leave all but one of them empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # The state outlives a run, and would refuse a second one in the same process in another precision.
    AcceleratorState._reset_state()
    if zero_config.is_told() and (not cpu or process_state().num_processes > 1):
        return _with_deepspeed(mixed_precision == "bf16", cpu)
    told = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    plugin = FullyShardedDataParallelPlugin() if told else None
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, fsdp_plugin=plugin)
    if plugin is not None and accelerator.distributed_type != DistributedType.NO:
        # accelerate sets it on GPUs, and in a process's first run; torch shards on CPUs as well.
        _set_kind(accelerator, DistributedType.FSDP)
        accelerator.state.fsdp_plugin = plugin
    _check_kind(accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        # Autocast computes in bfloat16, as it does without shards; parameters stay float32.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def _with_deepspeed(bf16: bool, cpu: bool) -> Accelerator:
    """The accelerator of a run under DeepSpeed.

    Raises:
        UsageError: Its configuration says what is the recipe's, or what no test covers.
    """
    plugin = zero_config.make_plugin(bf16)
    if cpu:
        # As it was before a run in the same process.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    accelerator = Accelerator(mixed_precision="no", cpu=cpu, deepspeed_plugin=plugin)
    if cpu:
        # accelerate knows DeepSpeed on devices alone; its processes talk by gloo as well.
        _set_kind(accelerator, DistributedType.DEEPSPEED)
        accelerator.state.deepspeed_plugins = plugin
    zero_config.select_plugin(plugin)
    _check_kind(accelerator)
    return accelerator


def _set_kind(accelerator: Accelerator, kind: DistributedType) -> None:
    PartialState._shared_state["distributed_type"] = kind
    accelerator.state.distributed_type = kind


def _check_kind(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind not in SUPPORTED and not kind.value.startswith("MULTI_"):
        raise UsageError(
            f"{kind.value} is not supported; use accelerate's multi_gpu (DDP), FSDP version 2 or DeepSpeed"
        )
    if kind == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UsageError("FSDP version 1 is not supported; set fsdp_version: 2 (--fsdp_version 2)")
        if plugin.activation_checkpointing:
            raise UsageError(
                "fsdp_activation_checkpointing is not supported; set gradient_checkpointing in the recipe"
            )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether processes hold shares of parameters."""
    return accelerator.distributed_type in SHARDED


def computes_in(accelerator: Accelerator) -> str:
    """Mixed precision in accelerate's words: `no` or `bf16`. Under DeepSpeed its engine casts."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return str(accelerator.mixed_precision)
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    return "bf16" if config["torch_autocast"]["enabled"] else "no"


def home_device(accelerator: Accelerator) -> torch.device:
    """Where a run keeps its model: where that of shares is kept, the device has no room for the whole."""
    return torch.device("cpu") if is_sharded(accelerator) else accelerator.device


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all processes: they must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else whole_parameter(tensor)


def local_share(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    share: Tensor = getattr(tensor, "ds_tensor", tensor)
    return share


def whole_optimizer(optimizer: torch.optim.Optimizer | ZeroOptimizer, keep: bool) -> dict[str, Any]:
    """The state of an optimiser as one process would have it: they must all ask for it.

    Args:
        optimizer: Its parameters may be shares.
        keep: Whether this process wants it; the others let go of each tensor once they have helped.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.whole(keep)
    state = optimizer.state_dict()
    own: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        own[number] = {}
        for name, value in values.items():
            # On the CPU: a machine with another device, or with none, goes on from it.
            complete = whole(value).cpu() if isinstance(value, Tensor) else value
            if keep:
                own[number][name] = complete
    return {**state, "state": own}


def load_optimizer(optimizer: torch.optim.Optimizer | ZeroOptimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser what `whole_optimizer` returned, cut as its parameters are."""
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.load(dict(state))
        return
    params = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {n: {k: _cut_like(v, params[n]) for k, v in values.items()} for n, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": cut})


def _cut_like(value: Any, parameter: Tensor) -> Any:
    """A tensor of the parameter's shape as its shares are; anything else (a count of steps) as it is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def reshard(module: Any) -> None:
    """Let go of what a pass without gradient has made whole: FSDP does that in the backward pass."""
    if isinstance(module, FSDPModule):
        module.reshard()


def of_every_process(value: Any, accelerator: Accelerator) -> list[Any]:
    """What each process has, in order: they must all ask for it."""
    return list(gather_object([value])) if accelerator.num_processes > 1 else [value]


def in_main_process(work: Callable[[], None]) -> None:
    """Let the main process do something while the others wait; they all end if it fails.

    Raises:
        VlmkitError: It failed; the main process raises what was raised there.
    """
    state, failure = process_state(), None
    try:
        if state.is_main_process:
            work()
    except Exception as error:
        failure = error
    said = [None if failure is None else str(failure)]
    if state.num_processes > 1:
        said = broadcast_object_list(said)
    if failure is not None:
        raise failure
    if said[0] is not None:
        raise VlmkitError(f"the main process failed: {said[0]}")


def own_randomness(seed: int, accelerator: Accelerator) -> None:
    """Let each process draw its own dropout; the first one draws what it would alone."""
    if accelerator.process_index:
        torch.manual_seed(seed + RANK_SEED * accelerator.process_index)


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether it is so in one of them: they must all ask."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


def most_of_all(count: int, accelerator: Accelerator) -> int:
    """The largest of the processes' numbers: they must all ask."""
    return max(map(int, of_every_process(count, accelerator)))
