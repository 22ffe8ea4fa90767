"""Refusals of options, in one form: what was found, what to give."""

from __future__ import annotations

from collections.abc import Sequence


def check_sizes(connector: str, **sizes: int | None) -> None:
    """Refuse sizes below 1; None is one that was left out.

    Raises:
        ValueError: One is; the message names it.
    """
    wrong = [f"{name}={size}" for name, size in sizes.items() if size is not None and size < 1]
    if wrong:
        raise ValueError(f"{connector} connector: found {', '.join(wrong)}; give 1 or more")


def check_divides(connector: str, part: str, whole: str, **sizes: int) -> None:
    """Refuse a size `part` that does not divide the size `whole`.

    Raises:
        ValueError: It does not; the message lists those that do.
    """
    total = sizes[whole]
    if total % sizes[part]:
        possible = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise ValueError(
            f"{connector} connector: found {part}={sizes[part]}, which does not divide {whole}={total}; "
            f"give one of {possible}, or another {whole}"
        )


def check_one_of(connector: str, option: str, found: str, possible: Sequence[str]) -> None:
    """Refuse a name that is not one of the possible ones.

    Raises:
        ValueError: It is not; the message lists them.
    """
    if found not in possible:
        raise ValueError(f"{connector} connector: found {option}={found!r}; give {' or '.join(possible)}")


def check_unused(connector: str, needs: str, **options: object) -> None:
    """Refuse options that do nothing as the others stand; None is one that was left out.

    Args:
        connector: Its name.
        needs: The option with which they do something, as it is written.
        options: Those that do nothing.

    Raises:
        ValueError: One is given.
    """
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{connector} connector: found {', '.join(given)}, which does nothing without {needs}; leave it "
            f"out, or give {needs}"
        )
