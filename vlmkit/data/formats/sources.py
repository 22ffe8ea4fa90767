"""Where a row's image is, when a text says it: in the text itself, or in a file. Nothing is downloaded."""

from __future__ import annotations

import base64
import binascii
import re

from vlmkit.errors import VlmkitError

# RFC 3986: a scheme and its authority. A drive letter (C:\) and a name with a colon are none.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA = "data:"
_BASE64 = ";base64"


def embedded_image(text: str, place: str) -> bytes | None:
    """The encoded image that a `data:` URI carries (RFC 2397, base64 only); None where the text is a path.

    Args:
        text: What a row says of its image.
        place: Names row and field in errors.

    Raises:
        VlmkitError: A URL, or a `data:` URI that is not base64.
    """
    if match := _URL.match(text):
        raise VlmkitError(
            f"{place}: found the URL {text[:80]!r} ({match.group()}); images are not downloaded, "
            "so that a run sees the same ones every time: download it and give its path"
        )
    if text[: len(_DATA)].lower() != _DATA:
        return None
    head, comma, body = text.partition(",")
    if not comma or not head.lower().endswith(_BASE64):
        raise VlmkitError(f"{place}: a data URI starts with data:image/TYPE;base64, (found {head[:40]!r})")
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise VlmkitError(f"{place}: the data URI is not base64 ({error}); encode the image again") from None
    if not data:
        raise VlmkitError(f"{place}: the data URI is empty; encode the image again")
    return data
