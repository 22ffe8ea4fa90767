"""Stored tensors beside those of a model: by name, shape and type, and every difference named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlmkit.errors import VlmkitError

# A tensor's shape and type, as `state.json` lists them.
Form = tuple[tuple[int, ...], str]
SHOWN = 5


def forms(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """Shape and type of each tensor."""
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}


def require_same(path: Path, wanted: Mapping[str, Form], stored: Mapping[str, Form]) -> None:
    """Refuse stored tensors that are not exactly those of a model.

    Args:
        path: Where they are stored, for the message.
        wanted: The model's.
        stored: What is there.

    Raises:
        VlmkitError: Names what is missing, left over, probably renamed, or of another shape or type.
    """
    missing, extra = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    renamed = likely_pairs({n: wanted[n] for n in missing}, {n: stored[n] for n in extra})
    other = [n for n in sorted(wanted) if n in stored and wanted[n] != stored[n]]
    found = [
        *_listed("missing", [n for n in missing if n not in renamed]),
        *_listed("left over", [n for n in extra if n not in renamed.values()]),
        *_listed("probably renamed", [f"{old} is now {new}" for new, old in renamed.items()]),
        *_listed("other", [f"{n} is {_said(stored[n])}, needed {_said(wanted[n])}" for n in other]),
    ]
    if found:
        raise VlmkitError(
            f"{path} does not fit: {'; '.join(found)}; nothing was loaded: use the recipe and the version of "
            "vlmkit that it was made by"
        )


def likely_pairs(missing: Mapping[str, Form], extra: Mapping[str, Form]) -> dict[str, str]:
    """Missing names to the left-over ones that are probably the same tensor: of one form, and most alike."""
    pairs: dict[str, str] = {}
    for name, form in missing.items():
        free = [n for n, f in extra.items() if f == form and n not in pairs.values()]
        near = difflib.get_close_matches(name, free, n=1)
        if near:
            pairs[name] = near[0]
    return pairs


def _listed(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what} {', '.join(names[:SHOWN])}{more}"] if names else []


def _said(form: Form) -> str:
    shape, kind = form
    return f"{kind} {' x '.join(map(str, shape)) or 'number'}"
