"""Whether a run is the same one still: which keys of a recipe may be others when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmkit.errors import UsageError
from vlmkit.recipe import Recipe

# Settings of a stage that change no number that it writes.
CHANGES_NO_NUMBER = ("workers", "checkpoint_every")
# Nor do these change a step that is done: a stage that would have stopped at a bad sample or step has met
# none so far, and one that left some out has them listed. What comes after is as the recipe says now.
STAGE_FREE = (*CHANGES_NO_NUMBER, "probe_every", "on_bad_sample", "on_non_finite")
# A run that was moved, is tested on other data or told to others is still the same run.
FREE = ("output", "evaluate", "trackers")


def require_same_run(run_dir: Path, written: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse to resume a run with a recipe that would have made another one.

    Args:
        run_dir: The run.
        written: The recipe in its manifest.
        recipe: The one that is given now.

    Raises:
        UsageError: Names the keys that differ.
    """
    # Read as a recipe, what an older version wrote has the defaults of keys that it did not know.
    before = Recipe.model_validate(written).model_dump(mode="json")
    changed = sorted(differences(_bound(before), _bound(recipe.model_dump(mode="json"))))
    if changed:
        raise UsageError(
            f"{run_dir} was made by another recipe (differs in: {', '.join(changed)}); "
            "resume with the same recipe, or set output=ANOTHER_DIRECTORY"
        )


def _bound(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same."""
    kept = {key: value for key, value in recipe.items() if key not in FREE}
    stages = [{key: v for key, v in stage.items() if key not in STAGE_FREE} for stage in recipe["stages"]]
    return {**kept, "stages": stages}


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two values of JSON differ, in words like `stages.vqa.batch_size`; the innermost names."""
    if one == other:
        return
    mine, others = _named(one), _named(other)
    if mine is None or others is None or list(mine) != list(others):
        yield place
        return
    for key in mine:
        yield from differences(mine[key], others[key], f"{place}.{key}" if place else key)


def _named(value: Any) -> Mapping[str, Any] | None:
    """A mapping as it is, a list of what has names by them; None for anything else."""
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {str(item["name"]): item for item in value}
    return value if isinstance(value, Mapping) else None
