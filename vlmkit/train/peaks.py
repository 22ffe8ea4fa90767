"""What graphics cards compute at most: dense matrix products, without sparsity.

The figures are those of NVIDIA's data sheets (https://www.nvidia.com/en-us/data-center/ for H100, H200, A100,
L4, L40S and others) and architecture white papers (Ada and GA102 for the GeForce cards, where bfloat16 is
with accumulation in float32). Data sheets that state figures with sparsity are halved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TERA = 1e12


@dataclass(frozen=True)
class Peak:
    """Operations a second, in 10^12.

    Attributes:
        fp32: In float32 proper, not TensorFloat-32.
        bf16: In bfloat16 on tensor cores; None for a card without.
    """

    fp32: float
    bf16: float | None


_A100, _H100 = Peak(19.5, 312), Peak(66.9, 989.4)
# By the name that CUDA gives a device. A part of a card (MIG) has another name, and is not known.
PEAKS = {
    "Tesla T4": Peak(8.1, None),
    "Tesla V100-SXM2-16GB": Peak(15.7, None),
    "Tesla V100-SXM2-32GB": Peak(15.7, None),
    "NVIDIA A10": Peak(31.2, 125),
    "NVIDIA A30": Peak(10.3, 165),
    "NVIDIA A40": Peak(37.4, 149.7),
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA L4": Peak(30.3, 121),
    "NVIDIA L40": Peak(90.5, 181.05),
    "NVIDIA L40S": Peak(91.6, 362.05),
    "NVIDIA RTX A6000": Peak(38.7, 154.8),
    "NVIDIA GeForce RTX 3090": Peak(35.6, 71.2),
    "NVIDIA GeForce RTX 4090": Peak(82.6, 165.2),
    "NVIDIA H100 PCIe": Peak(51.2, 756),
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H100,
}


def peak_flops(device: torch.device, mixed_precision: str) -> float | None:
    """Operations a second that a device can do at most; None where that is not known.

    Args:
        device: Where a run computes.
        mixed_precision: accelerate's word: `bf16`, or `no` for float32.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), mixed_precision)


def peak_of(name: str, mixed_precision: str) -> float | None:
    """The same by a card's name; None for float32 too where PyTorch may compute it in a shorter format."""
    peak = PEAKS.get(name)
    if peak is None:
        return None
    if mixed_precision == "bf16":
        return peak.bf16 and peak.bf16 * TERA
    exact = torch.get_float32_matmul_precision() == "highest"
    return peak.fp32 * TERA if mixed_precision == "no" and exact else None
