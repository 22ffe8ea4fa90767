"""Images in the content blocks that LangChain knows, from and to Pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vlmkit.data.sample import open_image
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.messages import ImageSource, read_image
from vlmkit_retrieval.images import FORMATS, MAX_BYTES, ImageError, from_base64, in_data_uri, read_file

Fetch = Callable[[str], bytes]
# Of block types that hold no text; the value is what is in them.
REFUSED = {
    "audio": "audio", "input_audio": "audio", "video": "video", "media": "media",
    "file": "a file (PDF or other)", "document": "a file (PDF or other)",
    "tool_use": "a tool call", "tool_call": "a tool call", "tool_result": "a tool's result",
}  # fmt: skip


def image_block(image: ImageSource) -> dict[str, Any]:
    """A content block with an image in it, for a message: a file as it is, a Pillow image as PNG.

    Args:
        image: File or Pillow image.

    Raises:
        VlmkitError: The file is no usable image.
    """
    if isinstance(image, Image.Image):
        file, kind = io.BytesIO(), "image/png"
        read_image(image).save(file, "PNG")
        data = file.getvalue()
    else:
        read_image(image)
        data = read_file(Path(image))
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            kind = opened.get_format_mimetype() or ""
    return {"type": "image", "base64": base64.b64encode(data).decode("ascii"), "mime_type": kind}


def block_image(block: Mapping[str, Any], where: str, fetch: Fetch | None) -> Image.Image | None:
    """The image of a content block as RGB; None for a block that holds no image.

    Known are LangChain's blocks (`base64`, or `url` with a data URI), OpenAI's `image_url` and Anthropic's
    `source`. What a block says of its format is not believed.

    Args:
        block: A content block.
        where: Put in front of errors, e.g. `message 0 (human)`.
        fetch: Gives the bytes behind an http(s) address; without it such addresses are refused.

    Raises:
        VlmkitError: The image cannot be read, or is given in a way that is not possible.
    """
    if block.get("type") == "image_url":
        given = block.get("image_url")
        return _from_url(given.get("url") if isinstance(given, Mapping) else given, where, fetch)
    if block.get("type") != "image":
        return None
    source = block.get("source")
    inner: Mapping[str, Any] = source if isinstance(source, Mapping) else block
    # LangChain calls encoded bytes `base64`; its older blocks and Anthropic call them `data`.
    data = inner.get("base64", inner.get("data"))
    if isinstance(data, str):
        return open_image(_decode(data, where), where)
    if "url" in inner:
        return _from_url(inner["url"], where, fetch)
    raise UsageError(
        f"{where}: an image block with {', '.join(sorted(inner.keys() - {'type'})) or 'nothing'} is not "
        "possible; give 'base64' and 'mime_type', or 'url' with a data URI (see vlmkit.langchain.image_block)"
    )


def _from_url(url: Any, where: str, fetch: Fetch | None) -> Image.Image:
    """The image of a data URI, or behind an address that `fetch` looks up."""
    if not isinstance(url, str):
        raise UsageError(f"{where}: an image's url must be text, found {type(url).__name__}")
    try:
        data = in_data_uri(url)
    except ImageError as error:
        raise UsageError(f"{where}: {error}") from None
    if data is not None:
        return open_image(_decode(data, where), where)
    shown = url if len(url) <= 80 else f"{url[:80]}..."
    if url.partition(":")[0].lower() not in ("http", "https"):
        raise UsageError(
            f"{where}: the image {shown!r} is not read, for a message may come from a stranger; "
            "put the file into the message with vlmkit.langchain.image_block(FILE)"
        )
    if fetch is None:
        raise UsageError(
            f"{where}: the image {shown!r} is not fetched, for a message must not make this machine open "
            "connections; put its bytes into the message, or pass ChatVlmkit(fetch_image=FUNCTION)"
        )
    return open_image(_fetched(fetch, url, shown, where), where)


def _fetched(fetch: Fetch, url: str, shown: str, where: str) -> bytes:
    data = fetch(url)
    if not isinstance(data, bytes):
        raise UsageError(f"{where}: fetch_image gave {type(data).__name__} for {shown!r}; it must give bytes")
    if len(data) > MAX_BYTES:
        raise VlmkitError(f"{where}: the image {shown!r} is larger than {MAX_BYTES // 1024**2} MiB")
    return data


def _decode(data: str, where: str) -> bytes:
    try:
        return from_base64(data)
    except ImageError as error:
        raise VlmkitError(f"{where}: {error}") from None


def refused_block(block: Mapping[str, Any], where: str) -> UsageError:
    """Why a block that holds neither text nor an image is not taken."""
    kind = block.get("type")
    inside = f", {REFUSED[kind]}," if isinstance(kind, str) and kind in REFUSED else ""
    return UsageError(
        f"{where}: a content block of type {kind!r}{inside} is not possible; this model reads text and images"
    )
