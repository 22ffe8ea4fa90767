"""What a retriever is asked: a text, a picture, or a message with both, as a text and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import HumanMessage
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.images import MAX_BYTES, ImageError, decode_image, from_base64, in_data_uri

# A text; a picture; a message, or the blocks of one.
Query = str | Image.Image | HumanMessage | Sequence[str | Mapping[str, Any]]
Fetch = Callable[[str], bytes]


def read_query(given: Query, fetch: Fetch | None = None) -> tuple[str, Image.Image | None]:
    """The text (empty without one) and the picture of a query.

    Blocks are those that langchain-core reads as text or as an image: LangChain's own, OpenAI's, Anthropic's.

    Args:
        given: See `Query`.
        fetch: Gives the bytes behind an http(s) address; without it such addresses are refused.

    Raises:
        RetrievalUsageError: Two pictures, a block of another kind, a path, or an address without `fetch`.
        RetrievalError: The bytes are no usable image.
    """
    if isinstance(given, str):
        return given, None
    if isinstance(given, Image.Image):
        return "", given
    message = given if isinstance(given, HumanMessage) else HumanMessage(content=_blocks(given))
    texts: list[str] = []
    pictures: list[Image.Image] = []
    for number, block in enumerate(message.content_blocks):
        if block["type"] == "text":
            texts.append(block["text"])
        else:
            pictures.append(_picture(block, f"block {number} of the query", fetch))
    if len(pictures) > 1:
        raise RetrievalUsageError(
            f"the query has {len(pictures)} images; a search takes a text, an image, or one of each"
        )
    return "\n".join(texts), pictures[0] if pictures else None


def _blocks(given: Any) -> list[Any]:
    if isinstance(given, list | tuple) and all(isinstance(block, str | Mapping) for block in given):
        return [block if isinstance(block, str) else dict(block) for block in given]
    raise RetrievalUsageError(
        f"the query is {type(given).__name__}; give a text, a Pillow image, a HumanMessage, or a list of "
        "content blocks"
    )


def _picture(block: Mapping[str, Any], where: str, fetch: Fetch | None) -> Image.Image:
    if block["type"] != "image":
        kind = block["value"].get("type") if block["type"] == "non_standard" else block["type"]
        raise RetrievalUsageError(f"{where}: a block of type {kind!r} is not possible; give text or an image")
    if isinstance(block.get("base64"), str):
        return _decoded(_bytes(block["base64"], where), where)
    url = block.get("url")
    if not isinstance(url, str):
        raise RetrievalUsageError(
            f"{where}: an image without 'base64' or 'url' is not possible; put its bytes into the block"
        )
    try:
        data = in_data_uri(url)
    except ImageError as error:
        raise RetrievalUsageError(f"{where}: {error}") from None
    return _decoded(_fetched(url, where, fetch) if data is None else _bytes(data, where), where)


def _fetched(url: str, where: str, fetch: Fetch | None) -> bytes:
    shown = url if len(url) <= 80 else f"{url[:80]}..."
    if url.partition(":")[0].lower() not in ("http", "https") or fetch is None:
        raise RetrievalUsageError(
            f"{where}: the image {shown!r} is not opened, for a message may come from a stranger; put the "
            "bytes into the block, pass image=load_image(FILE), or fetch_image=FUNCTION for http(s)"
        )
    data = fetch(url)
    if not isinstance(data, bytes):
        raise RetrievalUsageError(f"{where}: fetch_image gave {type(data).__name__} for {shown!r}, not bytes")
    return data


def _bytes(encoded: str, where: str) -> bytes:
    try:
        return from_base64(encoded)
    except ImageError as error:
        raise RetrievalError(f"{where}: {error}") from None


def _decoded(data: bytes, where: str) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise RetrievalError(f"{where}: the image is larger than {MAX_BYTES // 1024**2} MiB")
    try:
        return decode_image(data)
    except ImageError as error:
        raise RetrievalError(f"{where}: {error}") from error
