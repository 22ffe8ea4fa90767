"""Values that vary: read from the command line, written as overrides, named in folders and tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import yaml

from vlmkit.errors import UsageError
from vlmkit.overrides import Yaml

Values = Mapping[str, Any]
Axes = Mapping[str, Sequence[Any]]
# Longest value that is written out in the name of a folder.
LONGEST = 40


def read_axes(stated: Iterable[str], option: str) -> dict[str, list[Any]]:
    """`KEY=V1,V2` texts to the values of each key; a value is YAML and may be a mapping.

    Args:
        stated: What followed the option.
        option: Names it in errors (`--vary`).

    Raises:
        UsageError: A text is no such list, or a key or value comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in stated:
        key, equals, listed = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text!r} is not KEY=V1,V2; e.g. {option} model.connector.pool=1,2")
        if key in axes:
            raise UsageError(f"{option} {key} is given twice; put all its values into one list")
        axes[key] = _read_list(listed, f"{option} {text!r}")
    return axes


def _read_list(listed: str, where: str) -> list[Any]:
    try:
        values = yaml.load(f"[{listed}]", Yaml)
        texts = [as_text(value) for value in values]
    except (yaml.YAMLError, TypeError):
        raise UsageError(f"{where}: {listed!r} is no list of YAML values; put texts in quotes") from None
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if not values or twice:
        found = f"{', '.join(twice)} twice" if twice else "no value"
        raise UsageError(f"{where}: each value is needed once, found {found}")
    return list(values)


def as_text(value: Any) -> str:
    """A value as YAML on one line."""
    return json.dumps(value, ensure_ascii=False)


def as_overrides(values: Values) -> list[str]:
    """Values as `key=value` texts."""
    return [f"{key}={as_text(value)}" for key, value in values.items()]


def as_option(key: str, values: Sequence[Any]) -> str:
    """`KEY=V1,V2` that `read_axes` reads as these values; texts without quotes where they need none."""
    return f"{key}={','.join(map(_flow, values))}"


def _flow(value: Any) -> str:
    """A value as a person would write it into a list, where that reads as the value."""
    if isinstance(value, dict | list):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000_000).strip()
        return text if yaml.load(text, Yaml) == value else as_text(value)
    return value if _is_plain(value) else as_text(value)


def _is_plain(value: Any) -> bool:
    wordlike = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.+/-]*", value)
    return bool(wordlike and yaml.load(value, Yaml) == value)


def combinations(axes: Axes) -> list[dict[str, Any]]:
    """All combinations, the last key fastest; one without a value where nothing varies."""
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def labels(keys: Sequence[str]) -> dict[str, str]:
    """Short names that tell keys apart: `connector` for `model.connector.type`."""
    paths = {key: key.removesuffix(".type").split(".") for key in keys}
    return {key: _shortest(key, paths) for key in keys}


def _shortest(key: str, paths: Mapping[str, list[str]]) -> str:
    own = paths[key]
    for length in range(1, len(own) + 1):
        end = own[-length:]
        others = [path for other, path in paths.items() if other != key]
        # A number alone says nothing: it is a place in a list.
        if not end[0].isdigit() and all(path[-length:] != end for path in others):
            return ".".join(end)
    return key


def shown(value: Any) -> str:
    """A value for people: `mlp`, `400`, `perceiver num_latents=16`."""
    if isinstance(value, dict) and "type" in value:
        options = [f"{name}={shown(own)}" for name, own in value.items() if name != "type"]
        return " ".join([str(value["type"]), *options])
    return value if isinstance(value, str) else as_text(value)


def slug(values: Values, seed: int) -> str:
    """The name of a run's folder: what varies, and the seed.

    A value that no folder can be called by is cut to letters and digits, and gets a digest.
    """
    names = labels(list(values))
    parts = [f"{_clean(names[key])}-{_value_slug(value)}" for key, value in values.items()]
    return "_".join([*parts, f"seed-{seed}"])


def _value_slug(value: Any) -> str:
    text = shown(value)
    clean = _clean(text)[:LONGEST]
    if clean == text:
        return clean
    return f"{clean}-{hashlib.sha256(as_text(value).encode()).hexdigest()[:6]}"


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-.") or "value"
