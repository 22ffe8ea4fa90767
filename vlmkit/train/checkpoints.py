"""Checkpoints of a stage: one schema for every stage, written atomically, no unchecked pickle.

`checkpoints/STAGE-step-N/` in a run directory holds what is needed to go on: trained tensors, optimiser,
random state, and `state.json`, which names every tensor and has a hash of every file; see `intact`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmkit.checkpoint import building
from vlmkit.errors import VlmkitError
from vlmkit.train.devices import random_state, set_random_state
from vlmkit.train.distribute import load_optimizer, of_every_process, whole, whole_optimizer
from vlmkit.train.fit import forms, require_same
from vlmkit.train.intact import (
    TENSORS,
    is_checkpoint,
    listed_forms,
    read_state,
    reading,
    require_intact,
    seal,
    stage_and_step,
)
from vlmkit.train.zero import ZeroOptimizer

KEEP = 2
OPTIMIZER = "optimizer.pt"
RANDOM = "random.pt"


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: parameters that train, and stored buffers (of a batch norm, say)."""
    changing = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return changing | stored_buffers(module)


def stored_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that a checkpoint holds, by name: those that training moves are among them."""
    return {
        name: buffer
        for prefix, owner in module.named_modules()
        for name, buffer in owner.named_buffers(prefix, recurse=False)
        if name.rpartition(".")[2] not in owner._non_persistent_buffers_set
    }


@torch.no_grad()
def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | ZeroOptimizer,
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
    parameters = dict(module.named_parameters())
    for name, tensor in trained_tensors(module).items():
        # A parameter itself knows where its shares are.
        complete = whole(parameters.get(name, tensor)).detach()
        if writes:
            tensors[name] = complete.contiguous().cpu()
    moments = whole_optimizer(optimizer, writes)
    random = of_every_process(random_state(accelerator.device), accelerator)
    if not writes:
        return
    state = {**state, "optimizer": optimized_names(module, optimizer)}
    with building(path) as partial:
        save_file(tensors, partial / TENSORS)
        torch.save(moments, partial / OPTIMIZER)
        torch.save(random, partial / RANDOM)
        seal(partial, state, forms(tensors))


def optimized_names(module: nn.Module, optimizer: torch.optim.Optimizer | ZeroOptimizer) -> list[list[str]]:
    """The parameters of each group of an optimiser, by name: its own state knows them by number alone."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def load_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | ZeroOptimizer,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Restore the optimiser that `save_checkpoint` wrote, and return its state.

    The trained tensors are restored before, by `load_tensors`: an optimiser of shares needs them cut. The
    random state comes after all else that may draw, by `load_random`.

    Args:
        path: The checkpoint.
        module: Holds the parameters.
        optimizer: Over them, in the order in which they were when it was written.
        facts: What must be as it was, of the state that was given to `save_checkpoint`.

    Raises:
        DamagedError: A file is not what was written.
        VlmkitError: A fact has changed, or the optimiser has other parameters now, or in another order.
    """
    state = read_state(path)
    changed = [f"{k} (was {state[k]}, is {v})" for k, v in facts.items() if state.get(k, v) != v]
    if changed:
        raise VlmkitError(f"{path} was written with other data: {', '.join(changed)}; give it the same again")
    written = state.get("optimizer")
    if written is not None and written != optimized_names(module, optimizer):
        raise VlmkitError(
            f"{path} holds the optimiser's state for other parameters, or for these in another order; "
            "use the recipe and the version of vlmkit that it was made by"
        )
    with reading(path, state, OPTIMIZER) as file:
        moments = torch.load(file, map_location="cpu", weights_only=True)
    load_optimizer(optimizer, moments)
    return state


def load_random(path: Path, accelerator: Accelerator) -> None:
    """Restore the random state; a process that the writer did not have keeps the one it has.

    Raises:
        DamagedError: The file is not what was written.
    """
    state = read_state(path)
    with reading(path, state, RANDOM) as file:
        random = torch.load(file, map_location="cpu", weights_only=True)
    if accelerator.process_index < len(random):
        set_random_state(random[accelerator.process_index], accelerator.device)


def load_tensors(path: Path, module: nn.Module) -> None:
    """Restore the trained tensors of a checkpoint, and nothing else.

    Raises:
        VlmkitError: The checkpoint's tensors are not the ones that train now; names them.
    """
    copy_tensors(path, trained_tensors(module))


def copy_tensors(path: Path, trained: Mapping[str, Tensor]) -> None:
    """Write the tensors of a checkpoint into those of a model, by name: all of them, or none.

    Raises:
        DamagedError: A file is not what was written.
        VlmkitError: Names, shapes or types are not the same; names them.
    """
    stored = read_tensors(path)
    require_same(path, forms(trained), forms(stored))
    with torch.no_grad():
        for name, tensor in stored.items():
            trained[name].copy_(tensor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which are those that it lists.

    Raises:
        DamagedError: A file is not what was written.
    """
    state = read_state(path)
    with reading(path, state, TENSORS) as file:
        stored = load_file(file)
    listed = listed_forms(state)
    if listed is not None:
        require_same(path / TENSORS, listed, forms(stored))
    return stored


def derive(source: Path, into: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint with these tensors and everything else from another one, which is checked."""
    state = read_state(source)
    for name in (OPTIMIZER, RANDOM):
        require_intact(source, state, name)
        shutil.copyfile(source / name, into / name)
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, into / TENSORS)
    seal(into, state, forms(tensors))


def require_whole(path: Path) -> None:
    """Compare every file of a checkpoint with what was written.

    Raises:
        DamagedError: Names the first that is another.
    """
    state = read_state(path)
    for name in (TENSORS, OPTIMIZER, RANDOM):
        require_intact(path, state, name)


def of_stage(run: Path, stage: str) -> list[Path]:
    """The checkpoints of a stage, by steps."""
    found = [p for p in (run / "checkpoints").glob(f"{stage}-step-*") if is_checkpoint(p.name)]
    return sorted(found, key=lambda path: stage_and_step(path.name))


def latest_checkpoint(run: Path, stage: str) -> Path | None:
    """The stage's checkpoint with the most steps."""
    return next(reversed(of_stage(run, stage)), None)


def rotate(run: Path, stage: str, keep: int = KEEP) -> None:
    """Delete all but the newest checkpoints of a stage, and what a kill left of writing or deleting any."""
    for old in of_stage(run, stage)[:-keep]:
        # A kill while it is deleted must not leave a part of it under its name.
        old.replace(old.with_name(old.name + ".old"))
    for end in ("old", "partial"):
        for left in (run / "checkpoints").glob(f"*.{end}"):
            shutil.rmtree(left)
