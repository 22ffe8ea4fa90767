"""One answer, made in a thread of its own: pieces of text while they are made, then how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from vlmkit.errors import UsageError
from vlmkit.inference import model_inputs
from vlmkit.langchain.stops import StopText
from vlmkit.messages import Query
from vlmkit.splice import count_given
from vlmkit.vlm import VLM

# Seconds between two looks at whether an answer that waits for its turn is still wanted.
PATIENCE = 0.05
# Generations of one model come one after the other: they switch its mode, and would share the same cores.
_TURNS: WeakKeyDictionary[VLM, threading.Lock] = WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        max_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token; above that tokens are sampled.
        stop: Sequences that end the answer and are no part of it.
        timeout: Seconds after which the answer ends where it is; None for no limit.

    Raises:
        UsageError: A value is not possible.
    """

    max_tokens: int
    temperature: float
    stop: tuple[str, ...] = ()
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}; an answer needs at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; possible is 0 (no sampling) and more")
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"timeout is {self.timeout}; possible are seconds above 0, or None")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError(f"stop is {list(self.stop)}; possible are texts of at least one character")

    @property
    def options(self) -> dict[str, Any]:
        """For `generate`."""
        options: dict[str, Any] = {"max_new_tokens": self.max_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            options["temperature"] = self.temperature
        if self.timeout is not None:
            options["max_time"] = self.timeout
        return options


@dataclass(frozen=True)
class End:
    """How an answer ended, and what it took.

    Attributes:
        reason: `stop` (the model or a stop sequence ended it), `length` (max_tokens) or `timeout`.
        input_tokens: Tokens that the language model was given, those of images among them.
        image_tokens: Of images.
        output_tokens: Tokens that it wrote, with the one that ends the answer.
    """

    reason: str
    input_tokens: int
    image_tokens: int
    output_tokens: int


Event = str | End | BaseException


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Gives out an answer's text, up to a stop sequence, as whole words come together."""

    def __init__(self, tokenizer: Any, stops: StopText, emit: Callable[[Event], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._stops, self._emit = stops, emit

    def stopped(self) -> bool:
        """Whether a stop sequence is there, in the word too that is held back until it is whole."""
        written = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
        return self._stops.found or self._stops.would_stop(written[self.print_len :])

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        shown = self._stops.push(text) + (self._stops.end() if stream_end else "")
        if shown:
            self._emit(shown)


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Hands each token to the text, and ends a generation where the text stops or nobody waits for it.

    `generate` gives a token to a streamer of its own only after it has asked whether to go on, one too late.
    """

    def __init__(self, pieces: _Pieces, closed: threading.Event) -> None:
        self.stopped = False
        self._pieces, self._closed = pieces, closed

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self.stopped:
            self._pieces.put(input_ids[:, -1])
            self.stopped = self._pieces.stopped()
        ended = self.stopped or self._closed.is_set()
        return torch.full(input_ids.shape[:1], ended, device=input_ids.device)


def run(
    model: VLM,
    read: Callable[[], Query],
    settings: Settings,
    emit: Callable[[Event], None],
    closed: threading.Event,
) -> None:
    """Make one answer: emits its pieces, and at the end how it ended, or the error that it ended with.

    Args:
        model: Answers one question at a time; others wait.
        read: Gives the question.
        settings: How to answer.
        emit: Called in this thread.
        closed: Ends the answer when it is set.
    """
    try:
        query = read()
        turn = _turn_of(model)
        while not turn.acquire(timeout=PATIENCE):
            if closed.is_set():
                return
        try:
            emit(_generate(model, query, settings, emit, closed))
        finally:
            turn.release()
    except BaseException as error:
        emit(error)


def _turn_of(model: VLM) -> threading.Lock:
    with _TURNS_LOCK:
        return _TURNS.setdefault(model, threading.Lock())


def _generate(
    model: VLM, query: Query, settings: Settings, emit: Callable[[Event], None], closed: threading.Event
) -> End:
    training = model.training
    model.eval()
    try:
        inputs = model_inputs(model, [query])
        pieces = _Pieces(model.processor.tokenizer, StopText(settings.stop), emit)
        watch = _Watch(pieces, closed)
        criteria = StoppingCriteriaList([watch])
        tokens_1L = model.generate(**inputs, stopping_criteria=criteria, **settings.options)
        pieces.end()
    finally:
        model.train(training)
    prompt = inputs["input_ids"]
    new = tokens_1L[0, prompt.shape[1] :].tolist()
    images = image_tokens(model, [image.size for image in query.images])
    words = int((prompt != model.config.image_token_id).sum())
    return End(_reason(model, new, settings, watch.stopped), words + images, images, len(new))


def image_tokens(model: VLM, sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens that the language model is given of the images of one conversation, in its sequence or beside.

    Args:
        model: Any VLM.
        sizes: Width and height of each image in pixels.
    """
    parts = model.specs, model.connector, model.splice.marks
    return sum(count_given(*parts, image) for image in model.fit(sizes))


def _reason(model: VLM, new: list[int], settings: Settings, stopped: bool) -> str:
    assert model.generation_config is not None
    ends = model.generation_config.eos_token_id
    if stopped or new[-1] in (ends if isinstance(ends, list) else [ends]):
        return "stop"
    return "length" if len(new) >= settings.max_tokens else "timeout"
