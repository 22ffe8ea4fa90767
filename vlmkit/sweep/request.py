"""What a sweep is asked for, and the file in its folder that remembers it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vlmkit
from vlmkit.checkpoint import write_json
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.recipe import read_recipe
from vlmkit.sweep.values import Axes, as_option, as_text

FILE = "sweep.json"
# What a sweep itself decides, by the option that says it.
OWN = {"output": "--output", "seed": "--seeds, or seed=N for the first one"}


@dataclass(frozen=True)
class Request:
    """A grid of runs of one recipe.

    Attributes:
        recipe: Its file or bundled name.
        overrides: `key=value` for every run.
        vary: Values by key; the grid is their product.
        seeds: Runs of each combination; seeds count from the recipe's.
        tune: Values by key that are tried for each combination, see `vlmkit.sweep.tune`.
        tune_set: `key=value` on top while tuning, which put validation data in the place of the test data.
    """

    recipe: str
    overrides: Sequence[str] = ()
    vary: Axes = field(default_factory=dict)
    seeds: int = 1
    tune: Axes = field(default_factory=dict)
    tune_set: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: each combination needs 1 or more")
        if self.tune_set and not self.tune:
            raise UsageError("--tune-set is of --tune, which is not given; add --tune KEY=V1,V2")
        both = sorted(set(self.vary) & set(self.tune))
        if both:
            raise UsageError(f"{', '.join(both)}: in --vary and in --tune; a key is one or the other")
        set_here = [text.partition("=")[0] for text in self.tune_set]
        for key in (*self.vary, *self.tune, *set_here):
            if key in OWN:
                raise UsageError(f"{key!r} of each run is the sweep's to set; use {OWN[key]}")
        if any(text.startswith("output=") for text in self.overrides):
            raise UsageError(f"'output' of each run is the sweep's to set; use {OWN['output']}")

    def command(self) -> str:
        """The command that asks for this."""
        words = ["vlmkit", "sweep", self.recipe, *self.overrides]
        for key, values in self.vary.items():
            words += ["--vary", as_option(key, values)]
        words += ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        if self.tune:
            words += ["--tune", *(as_option(key, values) for key, values in self.tune.items())]
        return shlex.join([*words, *(["--tune-set", *self.tune_set] if self.tune_set else [])])

    def read(self) -> dict[str, Any]:
        """The recipe with the overrides that hold for every run, unchecked."""
        return read_recipe(self.recipe, self.overrides)[1]


def refuse_other(folder: Path, request: Request) -> None:
    """Compare a request with the one in the sweep's folder.

    Raises:
        UsageError: The folder holds something else, or a sweep that this one does not extend.
    """
    path = folder / FILE
    if path.exists():
        differs = _differences(_stored(path), _stated(request))
        if differs:
            raise UsageError(
                f"{folder} holds another sweep: {'; '.join(differs)}; ask for the same, for more values or "
                "seeds, or for another --output"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists, is not empty and holds no sweep; give another --output")


def remember(folder: Path, request: Request) -> None:
    """Write the request into the sweep's folder."""
    write_json(folder / FILE, _stated(request))


def _stated(request: Request) -> dict[str, Any]:
    named = {"recipe_file": request.recipe, "overrides": list(request.overrides)}
    grid = {"vary": dict(request.vary), "seeds": request.seeds}
    tuning = {"tune": dict(request.tune), "tune_set": list(request.tune_set)}
    kind = {"kind": "vlmkit sweep", "version": vlmkit.__version__}
    stated = {**kind, **named, **grid, **tuning, "recipe": request.read()}
    # Through JSON and back: what is compared has the types of what is stored.
    read: dict[str, Any] = json.loads(json.dumps(stated, default=str))
    return read


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlmkitError(f"{path} is damaged ({error}); give another --output") from None
    return stored


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a request does not have in common with the one before; more values or seeds are no difference."""
    before, now = old["recipe"], new["recipe"]
    keys = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    found = [f"the recipe differs in {', '.join(keys)}"] if keys else []
    if list(old["vary"]) != list(new["vary"]):
        found.append(f"--vary was of {_listed(old['vary'])}, is of {_listed(new['vary'])}")
    for key, values in old["vary"].items():
        gone = [as_text(v) for v in values if v not in new["vary"].get(key, values)]
        found += [f"--vary {key} had also {', '.join(gone)}"] * bool(gone)
    if new["seeds"] < old["seeds"]:
        found.append(f"--seeds was {old['seeds']}, is {new['seeds']}")
    for name in ("tune", "tune_set"):
        if old[name] != new[name]:
            found.append(f"--{name.replace('_', '-')} was {as_text(old[name])}, is {as_text(new[name])}")
    return found


def _listed(keys: Mapping[str, Any]) -> str:
    return ", ".join(keys) or "nothing"
