"""What users see when something is wrong: what was found, what is possible, what to do."""

from __future__ import annotations


class RetrievalError(ValueError):
    """An error in what the index was given or found, with a one-line message written for the user.

    Attributes:
        exit_code: 1 for a failure (a damaged file), 2 for a wrong use (neither text nor image to search for).
    """

    exit_code = 1


class RetrievalUsageError(RetrievalError):
    """The call asks for something that does not exist or does not fit."""

    exit_code = 2


class FileError(RetrievalError):
    """A file, or a part of one, that cannot be used; the message is the reason alone, without a name."""


class FileLostError(FileError):
    """A file that was opened cannot be read any more, or is another one: nothing is known of its parts."""


class IndexLockedError(RetrievalError):
    """Another process (or another object of this one) holds the index; one may at a time."""


class MissingPackageError(RetrievalError, ImportError):
    """An optional dependency is needed and not installed.

    Args:
        package: What could not be imported, as a user knows it (`qdrant-client`).
        otherwise: What to do where it cannot be installed.
    """

    def __init__(self, package: str, otherwise: str = "") -> None:
        super().__init__(f"{package} is not installed; do: pip install 'vlmkit[rag]'{otherwise}")
