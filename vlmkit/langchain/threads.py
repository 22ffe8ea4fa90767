"""An answer's events in the thread, or the event loop, that asked for it."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator

from vlmkit.langchain.generation import End, Event, Settings, run
from vlmkit.messages import Query
from vlmkit.vlm import VLM


def _start(
    model: VLM,
    read: Callable[[], Query],
    settings: Settings,
    emit: Callable[[Event], None],
    closed: threading.Event,
) -> threading.Thread:
    context = contextvars.copy_context()  # what a `fetch_image` looks up there is the caller's
    arguments = (run, model, read, settings, emit, closed)
    worker = threading.Thread(target=context.run, args=arguments, daemon=True)
    worker.start()
    return worker


def events(model: VLM, read: Callable[[], Query], settings: Settings) -> Generator[str | End]:
    """Pieces of an answer, and its end; an iterator that is closed or dropped stops the generation.

    Raises:
        VlmkitError: The question cannot be read, or not be answered by this model.
    """
    arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
    closed = threading.Event()
    worker = _start(model, read, settings, arrived.put, closed)
    event: Event = ""
    try:
        while not isinstance(event, End):
            event = arrived.get()
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        closed.set()
        worker.join()


async def async_events(
    model: VLM, read: Callable[[], Query], settings: Settings
) -> AsyncGenerator[str | End]:
    """As `events`; the event loop goes on meanwhile, and no thread of its pool waits."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Event] = asyncio.Queue()
    closed = threading.Event()

    def emit(event: Event) -> None:
        try:
            loop.call_soon_threadsafe(arrived.put_nowait, event)
        except RuntimeError:  # the loop is closed
            closed.set()

    _start(model, read, settings, emit, closed)
    event: Event = ""
    try:
        while not isinstance(event, End):
            event = await arrived.get()
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        closed.set()
