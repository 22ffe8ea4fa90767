"""`key=value` overrides of a raw recipe. Imports no torch.

An override of a block's `type` to another type drops the block's other options: they belong to the old type.
The language model's block is the exception, since families from scratch share the names of their sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from vlmkit.errors import UsageError

Place = tuple[str | int, ...]
KEEPS_OPTIONS: Place = ("model", "llm", "type")


class Yaml(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML follows 1.1, where `2e-5` is text."""


Yaml.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+\.?\d*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Options from `key=value` texts; see `apply_overrides`."""
    options: dict[str, Any] = {}
    apply_overrides(options, overrides)
    return options


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set values in a raw recipe, one after the other.

    Args:
        raw: Changed in place.
        overrides: `key=value`, the key a dotted path, the value YAML; an item of a list is an index or the
            item's name.

    Raises:
        UsageError: An override is not `key=value`, leads through something that is not there, or drops an
            option that an override before it has set.
    """
    done: list[Place] = []
    for override in overrides:
        done.append(_apply(raw, override, done))


def _apply(raw: dict[str, Any], override: str, done: Sequence[Place]) -> Place:
    """Set one value; returns where it lies."""
    path, equals, value = override.partition("=")
    if not equals:
        raise UsageError(f"{override!r} is not key=value; e.g. stages.0.steps=10")
    node: Any = raw
    place: Place = ()
    *inner, last = path.split(".")
    for name in inner:
        if isinstance(node, list):
            number = _index(node, name, override)
            node, place = node[number], (*place, number)
        else:
            node, place = node.setdefault(name, {}), (*place, name)
        if not isinstance(node, dict | list):
            raise UsageError(f"{override!r}: {name!r} holds a value, it has no parts")
    key = _index(node, last, override) if isinstance(node, list) else last
    place, read = (*place, key), _read(value, override)
    if last == "type" and isinstance(node, dict) and node.get("type", read) != read:
        _drop_options(node, place, override, done)
    node[key] = read
    return place


def _read(value: str, override: str) -> Any:
    try:
        return yaml.load(value, Yaml)
    except yaml.YAMLError:
        raise UsageError(f"{override!r}: {value!r} is not YAML; put it in quotes") from None


def _drop_options(block: dict[str, Any], place: Place, override: str, done: Sequence[Place]) -> None:
    """Empty a block that gets another type."""
    if place == KEEPS_OPTIONS:
        return
    lost = _set_before(block, place, done)
    if lost is not None:
        raise UsageError(
            f"{override!r} is another type, and drops {'.'.join(map(str, lost))}, which is set before it; "
            "set the type first, then the options of that type"
        )
    block.clear()


def _set_before(block: dict[str, Any], place: Place, done: Sequence[Place]) -> Place | None:
    """An option of the block that an override has set: by itself, or with all that it is in."""
    own = place[:-1]
    for name in block:
        option = (*own, name)
        for p in done:
            if option != place and p[: len(option)] == option[: len(p)]:
                return p if len(p) > len(option) else option
    return None


def _index(items: list[Any], key: str, override: str) -> int:
    names = [item.get("name") for item in items if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    known = [*map(str, range(len(items))), *[n for n in names if n]]
    raise UsageError(f"{override!r}: no item {key!r} (known: {', '.join(known)})")
