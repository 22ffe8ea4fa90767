"""Where recipes are: a file, or a bundled recipe, in every kind of install."""

from __future__ import annotations

from pathlib import Path

from vlmkit.errors import unknown_name

_PACKAGE = Path(__file__).parent


def bundled_recipes() -> dict[str, Path]:
    """The recipes that come with vlmkit, by name.

    Beside a checkout they are looked up there first: an editable install would otherwise see a stale copy.
    """
    checkout = _PACKAGE.parent / "recipes"
    folder = checkout if (checkout.parent / "pyproject.toml").is_file() else _PACKAGE / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: an existing path, or a bundled name (`quickstart`, `recipes/quickstart.yaml`).

    Raises:
        UsageError: Neither; names the nearest bundled recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = bundled_recipes()
    if path.stem in bundled and str(path.parent) in (".", "recipes"):
        return bundled[path.stem]
    raise unknown_name("recipe", str(name), bundled)
