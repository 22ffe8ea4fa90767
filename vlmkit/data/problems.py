"""What can be wrong with a sample, each an error of its own kind, so that problems can be counted by name."""

from __future__ import annotations

from typing import ClassVar

from vlmkit.errors import UsageError, VlmkitError

PROBLEMS: dict[str, str] = {
    "malformed": "rows or conversations malformed",
    "image_missing": "images missing",
    "image_unreadable": "images unreadable",
    "image_too_large": "images too large",
    "image_slots": "image slots do not match the images",
    "special_token": "special tokens in the text",
    "unknown_word": "words outside the vocabulary",
    "unsupervised": "nothing supervised",
    "too_long": "rows longer than max_length",
    "token_budget": "images over the token budget",
}


class ImageMissingError(VlmkitError):
    """There is no such file."""

    kind: ClassVar[str] = "image_missing"


class ImageUnreadableError(VlmkitError):
    """The bytes are no image, or cannot be read."""

    kind: ClassVar[str] = "image_unreadable"


class ImageTooLargeError(VlmkitError):
    """More pixels than the limit."""

    kind: ClassVar[str] = "image_too_large"


class ImageSlotsError(VlmkitError):
    """As many image slots as images are needed."""

    kind: ClassVar[str] = "image_slots"


class SpecialTokenError(UsageError):
    """Text that the tokenizer would read as one of its special tokens."""

    kind: ClassVar[str] = "special_token"


class PlaceholderError(VlmkitError):
    """Text that would be read as an image."""

    kind: ClassVar[str] = "special_token"


class UnknownWordError(UsageError):
    """Words that the tokenizer cannot write."""

    kind: ClassVar[str] = "unknown_word"


class UnsupervisedError(VlmkitError):
    """A row that would train nothing, or an empty answer."""

    kind: ClassVar[str] = "unsupervised"


class TooLongError(VlmkitError):
    """A row with more tokens than `max_length`."""

    kind: ClassVar[str] = "too_long"


class TokenBudgetError(UsageError):
    """Images that no layout makes small enough."""

    kind: ClassVar[str] = "token_budget"


PROBLEM_ERRORS: tuple[type[VlmkitError], ...] = (
    ImageMissingError,
    ImageUnreadableError,
    ImageTooLargeError,
    ImageSlotsError,
    SpecialTokenError,
    PlaceholderError,
    UnknownWordError,
    UnsupervisedError,
    TooLongError,
    TokenBudgetError,
)


def kind_of(error: Exception) -> str:
    """A name from `PROBLEMS`; what has no kind of its own is a malformed row."""
    kind: str = getattr(error, "kind", "malformed")
    return kind
