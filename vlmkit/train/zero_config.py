"""What a configuration of DeepSpeed may say: how the work is shared. All else is the recipe's."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from accelerate.utils import DeepSpeedPlugin

from vlmkit.errors import MissingExtraError, UsageError

STAGES = (1, 2, 3)
AUTO = "auto"
# What of a configuration the recipe says, and where; each may be left out, be `auto`, or have a value of OFF.
RECIPE = {
    "optimizer": "stages.train and betas",
    "scheduler": "schedule and warmup",
    "gradient_clipping": "clip",
    "gradient_accumulation_steps": "batch_size and micro_batch_size",
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "fp16": "precision",
    "bf16": "precision",
    "torch_autocast": "precision",
    "activation_checkpointing": "gradient_checkpointing",
}
OFF: dict[str, tuple[Any, ...]] = {"gradient_accumulation_steps": (1,)}
# What it may say, none of which changes a number.
SHARING = ("zero_optimization", "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "comms_logger")
# Of `zero_optimization`: other arithmetic, or a way that keeps what a checkpoint needs somewhere else.
ROUNDS = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")
ELSEWHERE = ("zenflow", "zero_hpz_partition_size", "cpu_offload", "cpu_offload_param")


def is_told() -> bool:
    """Whether `accelerate launch` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def require_deepspeed() -> None:
    """Look for the package where it is asked for, before accelerate does.

    Raises:
        MissingExtraError: It is not installed.
    """
    if is_told() and find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed")


def make_plugin(bf16: bool) -> DeepSpeedPlugin:
    """The configuration of what `accelerate launch` was told, with what vlmkit needs.

    Args:
        bf16: Whether the recipe computes in bfloat16; parameters and gradients stay float32.

    Raises:
        UsageError: It says what the recipe does, or what no test covers.
    """
    try:
        plugin = DeepSpeedPlugin()
    except ValueError as error:
        raise UsageError(f"the configuration of DeepSpeed cannot be read: {error}") from error
    config = plugin.deepspeed_config
    check_config(config)
    zero = {key: value for key, value in config["zero_optimization"].items() if value != AUTO}
    # It would replace torch's own function of linear layers, in the whole process.
    config["zero_optimization"] = {**zero, "memory_efficient_linear": False}
    for key in RECIPE:
        config.pop(key, None)
    config |= {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": AUTO,
        "gradient_accumulation_steps": 1,
        # torch's AdamW, also over parameters that are kept in main memory: DeepSpeed's own must be compiled.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # No module whose gradients are sent in bfloat16.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }
    return plugin


def select_plugin(plugin: DeepSpeedPlugin) -> None:
    """Make it the one of accelerate, and let each process assemble the whole model all the same."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    plugin.set_mixed_precision("no")
    plugin.select(_from_accelerator_state=True)
    unset_hf_deepspeed_config()


def check_config(config: dict[str, Any]) -> None:
    """Refuse what is not about sharing.

    Args:
        config: As accelerate has read it.

    Raises:
        UsageError: Names the key, and what to do.
    """
    for key, option in RECIPE.items():
        if not _is_open(key, config.get(key)):
            raise UsageError(
                f"DeepSpeed's configuration says {key}, which the recipe does: set {option} there, not here"
            )
    unknown = sorted(set(config) - {*RECIPE, *SHARING})
    if unknown:
        raise UsageError(
            f"DeepSpeed's {', '.join(unknown)} is not supported; its configuration may say "
            f"{', '.join(SHARING)}"
        )
    _check_zero(config["zero_optimization"])


def _is_open(key: str, value: Any) -> bool:
    """Whether a value of DeepSpeed's leaves the matter to the recipe."""
    if isinstance(value, dict) and "enabled" in value:
        value = value["enabled"]
    return value in (None, False, AUTO, *OFF.get(key, ()))


def _check_zero(zero: dict[str, Any]) -> None:
    stage = zero.get("stage")
    if stage not in STAGES:
        raise UsageError(
            f"DeepSpeed's stage {stage} of ZeRO is not supported; use {', '.join(map(str, STAGES))}, or "
            "accelerate's multi_gpu (DDP), which is what stage 0 is"
        )
    for key in (*ROUNDS, *ELSEWHERE):
        if zero.get(key) not in (None, False, AUTO):
            raise UsageError(f"DeepSpeed's zero_optimization.{key} is not supported; leave it out")
    if zero.get("compute_grad_norm", True) is False:
        raise UsageError("DeepSpeed must compute the norm of the gradient; leave compute_grad_norm out")
    for key in ("offload_optimizer", "offload_param"):
        device = (zero.get(key) or {}).get("device")
        if device not in (None, "none", "cpu", AUTO):
            raise UsageError(f"DeepSpeed's {key} to {device} is not supported; its device may be cpu or none")
