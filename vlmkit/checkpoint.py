"""Run directories: what one is, writing into it so that a reader sees all or nothing, parts of saved models.

A root is the model, whole; `checkpoints/` holds what is needed to go on: see `vlmkit.train.checkpoints`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmkit import durable
from vlmkit.errors import UsageError, VlmkitError

MANIFEST = "vlmkit.json"
# Of a model of ours, in its config.json; see `VLMConfig`.
MODEL_TYPE = "vlmkit"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write by renaming a finished file into place: a reader sees the old content or the new."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """As `write_json`; after a power cut, too, the file is the old one or the new."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(content, encoding="utf-8")
    durable.sync(partial)
    partial.replace(path)
    durable.sync(path.parent)


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
    durable.sync_tree(partial)
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        final.replace(old)
        partial.replace(final)
        durable.sync(final.parent)
        shutil.rmtree(old)
    else:
        partial.replace(final)
        durable.sync(final.parent)


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
        _readable_as(partial)
        swap_in(partial, final)
    # torch and safetensors say "no space left" with errors of their own.
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise VlmkitError(
            f"{final} cannot be written ({reason}); if the disk is full, make room, then go on with --resume"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _readable_as(folder: Path) -> None:
    """Let others read the files as they may read the folder: safetensors makes them for their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)


def compare_names(path: Path, wanted: set[str], stored: set[str]) -> None:
    """Refuse stored tensors under other names than those wanted.

    Raises:
        VlmkitError: Names the first ones.
    """
    if wanted != stored:
        missing, extra = sorted(wanted - stored)[:3], sorted(stored - wanted)[:3]
        raise VlmkitError(
            f"{path} does not fit: missing {missing or 'nothing'}, left over {extra or 'nothing'}; "
            "use the recipe it was made by"
        )


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
    compare_names(folder, set(module.state_dict()), set(tensors))
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
