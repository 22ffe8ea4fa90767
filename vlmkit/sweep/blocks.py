"""The blocks that a run gets: what is left of their options after an override of their type."""

from __future__ import annotations

from typing import Any

from vlmkit.sweep.grid import Job
from vlmkit.sweep.values import labels, shown


def resolved_blocks(job: Job) -> dict[str, str]:
    """The connector, and each other block whose type varies, with all options that are left to it."""
    varied = [key.removesuffix(".type") for key in job.varied if key.endswith(".type")]
    paths = dict.fromkeys(["model.connector", *varied])
    names = labels(list(paths))
    return {names[path]: shown(_at(job.recipe.model_dump(exclude_unset=True), path)) for path in paths}


def _at(node: Any, path: str) -> Any:
    """What a dotted path of a checked override leads to."""
    for key in path.split("."):
        if isinstance(node, list):
            named = {item.get("name"): item for item in node}
            node = named[key] if key in named else node[int(key)]
        else:
            node = node[key]
    return node
