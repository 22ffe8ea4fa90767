"""Reading Hugging Face checkpoints: configuration, preprocessing, and weights that all find their place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmkit.errors import VlmkitError
from vlmkit.weights import reachable_weights

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_pretrained(cls: Any, reference: str, **arguments: Any) -> Any:
    """`cls.from_pretrained` for a weights reference.

    Raises:
        VlmkitError: There is nothing of that kind, or it cannot be reached.
    """
    path = reachable_weights(reference)
    with _readable(reference):
        return cls.from_pretrained(path, **arguments)


def read_config(reference: str) -> Any:
    """The `transformers` configuration of a checkpoint, without its weights; see `load_pretrained`."""
    from transformers import AutoConfig

    return load_pretrained(AutoConfig, reference)


def read_processor(reference: str) -> dict[str, Any]:
    """The stored image processor as a dictionary; empty where the checkpoint has none.

    Raises:
        VlmkitError: It cannot be reached, or is no JSON.
    """
    from transformers.utils import cached_file

    path = reachable_weights(reference)
    for name in PROCESSOR_FILES:
        with _readable(reference):
            found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
            stored: dict[str, Any] = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
        # transformers 5 nests the image processor in processor_config.json, older ones keep it elsewhere.
        stored = stored.get("image_processor", {}) if name == PROCESSOR_FILES[0] else stored
        if stored:
            return stored
    return {}


def cached_path(reference: str, name: str) -> str | None:
    """Where a file of a checkpoint is on this machine; None where the checkpoint has none of that name.

    Raises:
        VlmkitError: It cannot be reached.
    """
    from transformers.utils import cached_file

    path = reachable_weights(reference)
    with _readable(reference):
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else str(found)


def load_checkpoint(cls: Any, reference: str, optional: str = "", **arguments: Any) -> Any:
    """A model in float32 of which every tensor is stored, from a checkpoint of which every tensor is used.

    What `cls` lists in `_keys_to_ignore_on_load_unexpected` is not asked for.

    Args:
        cls: The `transformers` class.
        reference: Weights reference.
        optional: Regular expression found in the names of tensors that may be missing or left over.
        arguments: More arguments of `from_pretrained`.

    Raises:
        VlmkitError: The checkpoint cannot be read; tensors are missing, left over or of another shape.
    """
    # Other shapes are in `info` and refused below, all together.
    arguments |= {"dtype": "float32", "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = load_pretrained(cls, reference, **arguments)
    mismatched = {key[0] for key in info["mismatched_keys"]}
    _refuse(reference, {**info, "mismatched_keys": mismatched}, optional)
    return model


def _refuse(reference: str, info: dict[str, Any], optional: str) -> None:
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(n for n in info[f"{kind}_keys"] if not (optional and re.search(optional, n)))
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise VlmkitError(
                f"weights {reference!r}: {kind} tensors: {', '.join(names[:5])}{more}; "
                "the checkpoint does not belong to this architecture"
            )


@contextmanager
def _readable(reference: str) -> Iterator[None]:
    """What transformers raises for a checkpoint that is not there, as one line."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        # A tokenizer or model may need a package of its own, such as sentencepiece.
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(f"weights {reference!r} cannot be read: {reason}") from error
