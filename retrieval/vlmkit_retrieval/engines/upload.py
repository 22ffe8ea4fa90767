"""Requests to a server: several at a time, each repeated when it failed for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Piece = TypeVar("Piece")

# Seconds before the second, third and fourth attempt.
_WAITS = (0.5, 1.0, 2.0)
_BUSY = (429, 502, 503, 504)
_BUSY_GRPC = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


def send_all(pieces: Iterable[Piece], send: Callable[[Piece], None], parallel: int) -> None:
    """Send every piece, `parallel` at a time.

    Raises:
        Exception: The first error; pieces that were not begun by then are not sent.
    """
    with ThreadPoolExecutor(parallel, "vlmkit-upload") as threads:
        sent = [threads.submit(send, piece) for piece in pieces]
        try:
            for future in sent:
                future.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def with_retry(
    send: Callable[[Sequence[Any]], None], waits: Sequence[float] = _WAITS
) -> Callable[[Sequence[Any]], None]:
    """`send`, repeated while the server is busy or cannot be reached: storing twice is storing once."""

    def attempt(piece: Sequence[Any]) -> None:
        for wait in waits:
            try:
                return send(piece)
            except Exception as error:
                if not passes(error.__cause__ or error):
                    raise
                time.sleep(wait)
        return send(piece)

    return attempt


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    import grpc
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(error, UnexpectedResponse):
        return error.status_code in _BUSY
    if isinstance(error, grpc.RpcError):
        return error.code().name in _BUSY_GRPC
    return isinstance(error, ResponseHandlingException | ResourceExhaustedResponse)


def reason(error: BaseException) -> str | None:
    """What the server or the network said, in one line; None if the error is another."""
    import grpc
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ApiException

    if isinstance(error, grpc.RpcError):
        return " ".join(f"{error.code().name}: {error.details()}".split())[:300]
    if isinstance(error, ApiException | QdrantException):
        return " ".join(str(error).split())[:300]
    return None
