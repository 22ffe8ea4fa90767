"""Run directories and checkpoints: one schema for every stage, written atomically, no unchecked pickle.

A run's root is the model, whole. `checkpoints/STAGE-step-N/` holds what is needed to go on: trained tensors,
optimiser, random state, and a manifest that names every tensor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmkit.errors import UsageError, VlmkitError
from vlmkit.train.distribute import load_optimizer, of_every_process, whole, whole_optimizer

MANIFEST = "vlmkit.json"
# Of a model of ours, in its config.json; see `VLMConfig`.
MODEL_TYPE = "vlmkit"
KEEP = 2


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write by renaming a finished file into place: a reader sees the old content or the new."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_run(path: str | Path) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises:
        UsageError: The directory is no run.
    """
    manifest = Path(path) / MANIFEST
    if not manifest.is_file():
        what = "is not a vlmkit run (it has no vlmkit.json)" if Path(path).is_dir() else "does not exist"
        raise UsageError(f"{path} {what}; give the directory that `vlmkit train` wrote, e.g. runs/quickstart")
    try:
        content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlmkitError(f"{manifest} is damaged ({error}); train the run again") from None
    return content


def other_model(path: str | Path) -> str | None:
    """The `model_type` of the plain Hugging Face checkpoint in a folder; None where there is none.

    Raises:
        VlmkitError: config.json is damaged.
    """
    config = Path(path) / "config.json"
    if not config.is_file():
        return None
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (AttributeError, ValueError) as error:
        raise VlmkitError(f"{config} is damaged ({error})") from None
    return None if kind == MODEL_TYPE else str(kind)


def no_run(path: str | Path, kind: str, family: str = "FAMILY") -> UsageError:
    """An error for a plain checkpoint where a run is asked for.

    Args:
        path: Its folder.
        kind: Its `model_type`.
        family: The encoder that takes it, where one is known.
    """
    hint = " (`vlmkit list encoders` shows the families)" if family == "FAMILY" else ""
    return UsageError(f"{path} is a {kind!r} checkpoint, no run; name its encoder: {family}:{path}{hint}")


def require_model(path: str | Path) -> None:
    """Check that a directory holds a whole model: a finished run, or what `save_pretrained` wrote.

    Raises:
        UsageError: It is neither; a run that has not finished says how to finish it.
    """
    kind = other_model(path)
    if kind is not None:
        raise no_run(path, kind)
    saved = (Path(path) / "config.json").is_file()
    if saved and not (Path(path) / MANIFEST).exists():
        return
    if not read_run(path)["finished"]:
        again = f"vlmkit train {path}/recipe.yaml --resume"
        raise UsageError(f"{path} is a run that has not finished; do: {again}")


def swap_in(partial: Path, final: Path) -> None:
    """Put a finished directory in the place of an older one."""
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
        partial.replace(final)
        shutil.rmtree(old)
    else:
        partial.replace(final)


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: parameters that train, and stored buffers (of a batch norm, say)."""
    changing = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in owner._non_persistent_buffers_set:
                changing[name] = buffer
    return changing


@contextmanager
def building(final: Path) -> Iterator[Path]:
    """A directory to write into, which takes the place of `final` when everything in it is written.

    Raises:
        VlmkitError: It could not be written (a full disk, no permission); nothing is left of it.
    """
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        swap_in(partial, final)
    # torch and safetensors say "no space left" with errors of their own.
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise VlmkitError(
            f"{final} cannot be written ({reason}); make room, then go on with --resume"
        ) from error


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
    _compare_names(path, set(trained), set(stored))
    with torch.no_grad():
        for name, tensor in stored.items():
            trained[name].copy_(tensor)


def _compare_names(path: Path, wanted: set[str], stored: set[str]) -> None:
    if wanted != stored:
        missing, extra = sorted(wanted - stored)[:3], sorted(stored - wanted)[:3]
        raise VlmkitError(
            f"{path} does not fit: missing {missing or 'nothing'}, left over {extra or 'nothing'}; "
            "use the recipe it was made by"
        )


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


def load_part(module: nn.Module, folder: Path, prefix: str) -> None:
    """Load the tensors under `prefix` of a saved model into a module, without the rest of the model.

    Raises:
        VlmkitError: The folder holds no such tensors, or they do not fit the module.
    """
    files = sorted(folder.glob("*.safetensors"))
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            names = [n for n in stored.keys() if n.startswith(prefix)]  # noqa: SIM118
            tensors |= {name.removeprefix(prefix): stored.get_tensor(name) for name in names}
    for name, tower in module.named_children():
        if isinstance(tower, PreTrainedModel):
            tensors = _in_memory_names(tower, f"{name}.", tensors)
    _compare_names(folder, set(module.state_dict()), set(tensors))
    module.load_state_dict(tensors)


def _in_memory_names(tower: PreTrainedModel, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a tower under the names of its module.

    transformers stores some towers (DINOv2) under their published names, which are others than in memory.
    Tensors that do not fit are left as they are, for the comparison of names to report.
    """
    stored = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if set(stored) == set(tower.state_dict()):
        return tensors
    options = {"config": tower.config, "dtype": "auto", "output_loading_info": True}
    loaded, info = type(tower).from_pretrained(None, state_dict=stored, **options)
    # A tower may have let go of what it does not run: that is missing here, and was never stored.
    own = set(tower.state_dict())
    if own & set(info["missing_keys"]) or info["unexpected_keys"]:
        return tensors
    others = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
    return others | {prefix + n: t for n, t in loaded.state_dict().items() if n in own}
