"""What users see when something is wrong: what was found, what is possible, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VlmkitError(ValueError):
    """An error in what vlmkit was given or found, with a message written for the user.

    The command line prints the message on one line and exits with `exit_code`.

    Attributes:
        exit_code: 1 for a failure (a file that cannot be read), 2 for a wrong use (an unknown name).
    """

    exit_code = 1


class UsageError(VlmkitError):
    """The command, recipe or call asks for something that does not exist or does not fit."""

    exit_code = 2


class MissingExtraError(VlmkitError):
    """An optional dependency is needed and not installed.

    Args:
        package: What could not be imported, as a user knows it (`peft`).
        extra: The extra of vlmkit that brings it (`train`).
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; do: pip install 'vlmkit[{extra}]'")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error for a name that is in no table: says the nearest one and lists what is possible.

    Args:
        kind: What the name stands for, e.g. `encoder`.
        name: What was given.
        known: The names that exist.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")
