"""Checkpoints of a stage: one schema for every stage, written atomically, no unchecked pickle.

`checkpoints/STAGE-step-N/` in a run directory holds what is needed to go on: trained tensors, optimiser,
random state, and a manifest that names every tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmkit.checkpoint import building, compare_names, write_json
from vlmkit.train.distribute import load_optimizer, of_every_process, whole, whole_optimizer

KEEP = 2


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: parameters that train, and stored buffers (of a batch norm, say)."""
    changing = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in owner._non_persistent_buffers_set:
                changing[name] = buffer
    return changing


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    """Write a checkpoint; it appears under its name only when it is whole.

    Every process calls it, for parts of tensors and its own random state; the main one writes. Tensors are
    written whole, so that any number of processes goes on.

    Args:
        path: `.../checkpoints/STAGE-step-N`.
        module: Holds the trained parameters.
        optimizer: Its state is stored.
        state: Stage, step and what else the loop needs, as JSON values.
        accelerator: The processes.
    """
    writes, tensors = accelerator.is_main_process, {}
    for name, tensor in trained_tensors(module).items():
        complete = whole(tensor)
        if writes:
            tensors[name] = complete.contiguous().cpu()
    moments = whole_optimizer(optimizer, writes)
    random = of_every_process(_random_state(), accelerator)
    if not writes:
        return
    with building(path) as partial:
        save_file(tensors, partial / "trained.safetensors")
        torch.save(moments, partial / "optimizer.pt")
        torch.save(random, partial / "random.pt")
        write_json(partial / "state.json", {**state, "tensors": sorted(tensors)})


def load_checkpoint(path: Path, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> dict[str, Any]:
    """Restore the optimiser and the random state that `save_checkpoint` wrote, and return its state.

    The trained tensors are restored before, by `load_tensors`: an optimiser of shares needs them cut. A
    process that the writer did not have keeps the random state it has.

    Args:
        path: The checkpoint.
        optimizer: Over the parameters in the order in which they were when it was written.
        accelerator: The processes; others than those that wrote it may load it.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    load_optimizer(optimizer, torch.load(path / "optimizer.pt", weights_only=True))
    random = torch.load(path / "random.pt", weights_only=True)
    if accelerator.process_index < len(random):
        _set_random_state(random[accelerator.process_index])
    return state


def load_tensors(path: Path, module: nn.Module) -> None:
    """Restore the trained tensors of a checkpoint, and nothing else.

    Raises:
        VlmkitError: The checkpoint's tensors are not the ones that train now; names them.
    """
    copy_tensors(path, trained_tensors(module))


def copy_tensors(path: Path, trained: Mapping[str, Tensor]) -> None:
    """Write the tensors of a checkpoint into those of a model, by name.

    Raises:
        VlmkitError: The names are not the same; names them.
    """
    stored = load_file(path / "trained.safetensors")
    compare_names(path, set(trained), set(stored))
    with torch.no_grad():
        for name, tensor in stored.items():
            trained[name].copy_(tensor)


def latest_checkpoint(run: Path, stage: str) -> Path | None:
    """The stage's checkpoint with the most steps."""
    found = list((run / "checkpoints").glob(f"{stage}-step-*[0-9]"))
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)


def rotate(run: Path, stage: str, keep: int = KEEP) -> None:
    """Delete all but the newest checkpoints of a stage."""
    found = sorted(
        (run / "checkpoints").glob(f"{stage}-step-*[0-9]"), key=lambda p: int(p.name.rsplit("-", 1)[1])
    )
    for old in found[: max(0, len(found) - keep)]:
        shutil.rmtree(old)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
