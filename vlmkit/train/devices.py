"""What devices differ in: numbers of 64 bits, and their random state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type to add up in: float64, and float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def random_state(device: torch.device) -> dict[str, Any]:
    """The random state of the CPU and of one device, which no other process draws from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = [torch.cuda.get_rng_state(device)]
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set what `random_state` returned; that of a device of another kind is left out.

    Args:
        state: Of earlier versions of vlmkit it has all GPUs of the machine, by number.
        device: Of this process.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state.get("cuda"):
        states = state["cuda"]
        number = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_rng_state(states[number] if number < len(states) else states[0], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Inside anything may be drawn; after it the random state is as it was."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
