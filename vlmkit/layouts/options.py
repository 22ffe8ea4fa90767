"""Checks of the options of a layout, so that a wrong one is found when a recipe is read."""

from __future__ import annotations

from vlmkit.errors import UsageError


def check_whole(option: str, value: object, least: int) -> None:
    """Refuse what is no whole number of `least` or more.

    Args:
        option: Layout and option as a user knows them, e.g. `tiles max_tiles`.
        value: What was given.
        least: The smallest number that is possible.

    Raises:
        UsageError: The value does not fit.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"layout {option} is {value!r}; it needs a whole number of {least} or more")


def check_flag(option: str, value: object) -> None:
    """Refuse what is neither true nor false; arguments and errors as in `check_whole`."""
    if not isinstance(value, bool):
        raise UsageError(f"layout {option} is {value!r}; it needs true or false")
