"""Which floating-point type a device trains in."""

from __future__ import annotations

import torch


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bfloat16; without, it is many times slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))


def mixed_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Accelerate's `mixed_precision` (`no` or `bf16`) for a recipe's `precision`, and the reason in words."""
    if wanted == "fp32":
        return "no", "float32, as the recipe says"
    able = cpu_has_bf16() if device.type == "cpu" else device.type != "cuda" or torch.cuda.is_bf16_supported()
    if able:
        return "bf16", f"bfloat16 with float32 weights on {device.type}"
    if wanted == "bf16":
        return "no", f"float32: the recipe asks for bf16, and this {device.type} has no bfloat16 instructions"
    return "no", f"float32: this {device.type} has no bfloat16 instructions"
