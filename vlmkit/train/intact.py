"""What is in a checkpoint, written down with it: tensors by name, shape and type, and a hash of every file.

`state.json` is written last. It has a hash of itself, too, and is read before anything else is.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmkit.checkpoint import write_json
from vlmkit.errors import VlmkitError
from vlmkit.train.fit import Form

STATE = "state.json"
TENSORS = "trained.safetensors"
# 1 had no hashes and listed names alone; it is still read, unchecked.
FORMAT = 2
_NAME = re.compile(r"(?P<stage>.+)-step-(?P<step>\d+)")


class DamagedError(VlmkitError):
    """A file of a checkpoint is not what was written.

    Attributes:
        reason: What was found, without what to do.
    """

    def __init__(self, path: Path, name: str, found: str) -> None:
        self.reason = f"{path / name} {found}"
        super().__init__(f"{self.reason}; {_way_back(path)}")


def seal(path: Path, state: Mapping[str, Any], tensors: Mapping[str, Form]) -> None:
    """Write `state.json` over what lies in the folder of a checkpoint: its last file.

    Args:
        path: The folder.
        state: Stage, step and what else the loop needs, as JSON values.
        tensors: What `trained.safetensors` holds.
    """
    hashes = {file.name: sha256(file) for file in sorted(path.iterdir())}
    listed = {name: {"shape": list(shape), "dtype": kind} for name, (shape, kind) in sorted(tensors.items())}
    content = {**state, "format": FORMAT, "tensors": listed, "sha256": hashes}
    write_json(path / STATE, {**content, "state_sha256": _own(content)})


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's `state.json`.

    Raises:
        DamagedError: It is gone, or not what was written.
        VlmkitError: A later vlmkit wrote it.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        written = state.pop("state_sha256", None)
    except FileNotFoundError:
        raise DamagedError(path, STATE, "is gone") from None
    except (ValueError, AttributeError) as error:
        raise DamagedError(path, STATE, f"is damaged ({error})") from None
    if state.get("format", 1) > FORMAT:
        raise VlmkitError(f"{path} was written by a later version of vlmkit; go on with that one")
    if is_hashed(state) and written != _own(state):
        raise DamagedError(path, STATE, "is damaged (its SHA-256 is another than was written)")
    return state


def is_hashed(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint can be checked; those of earlier versions of vlmkit cannot."""
    return bool(state.get("format", 1) > 1)


def require_intact(path: Path, state: Mapping[str, Any], name: str) -> None:
    """Compare a file of a checkpoint with its hash; nothing to compare with is no error.

    Raises:
        DamagedError: It is gone, or not what was written.
    """
    if not (path / name).is_file():
        raise DamagedError(path, name, "is gone")
    if is_hashed(state) and state["sha256"].get(name) != sha256(path / name):
        raise DamagedError(path, name, "is damaged (its SHA-256 is another than was written)")


@contextmanager
def reading(path: Path, state: Mapping[str, Any], name: str) -> Iterator[Path]:
    """A file of a checkpoint that is what was written; gives its path.

    Raises:
        DamagedError: It is not, or cannot be read.
    """
    require_intact(path, state, name)
    try:
        yield path / name
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DamagedError(path, name, f"cannot be read ({' '.join(str(error).split())})") from error


def listed_forms(state: Mapping[str, Any]) -> dict[str, Form] | None:
    """The tensors that `state.json` lists; None where it lists names alone."""
    if not isinstance(state["tensors"], Mapping):
        return None
    return {name: (tuple(form["shape"]), form["dtype"]) for name, form in state["tensors"].items()}


def is_checkpoint(name: str) -> bool:
    """Whether a folder is called as checkpoints are."""
    return _NAME.fullmatch(name) is not None


def stage_and_step(name: str) -> tuple[str, int]:
    """`vqa-step-000200` as its stage and step."""
    found = _NAME.fullmatch(name)
    assert found is not None, "checkpoints are called STAGE-step-N"
    return found["stage"], int(found["step"])


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _way_back(path: Path) -> str:
    """How to go on from the checkpoint before this one, which is the user's to decide."""
    stage, step = stage_and_step(path.name)
    others = [stage_and_step(p.name) for p in path.parent.iterdir() if is_checkpoint(p.name)]
    before = max((n for s, n in others if s == stage and n < step), default=0)
    where = "the checkpoint before it" if before else f"the beginning of stage {stage}"
    return (
        f"--resume-from {stage}-step-{before:06d} goes on from {where}, and trains the steps after it again"
    )
