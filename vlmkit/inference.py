"""Questions to answers: batches, greedy by default, streaming."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from vlmkit.data.sample import IMAGE, Conversation, Message, Part, open_image
from vlmkit.errors import UsageError
from vlmkit_retrieval.images import to_rgb

if TYPE_CHECKING:
    from vlmkit.vlm import VLM

BATCH = 256
DEFAULTS = {"do_sample": False, "max_new_tokens": 64}


@dataclass(frozen=True)
class Query:
    """A conversation that waits for an answer, with its images."""

    conversation: Conversation
    images: tuple[Image.Image, ...]


def question(images: Sequence[str | Path | Image.Image], text: str) -> Query:
    """Images, then a question about them."""
    if not text.strip():
        raise UsageError("the question is empty; ask something")
    parts: tuple[Part, ...] = (*[IMAGE] * len(images), text)
    return Query((Message("user", parts),), tuple(_open(i) for i in images))


def conversation(messages: Sequence[dict[str, Any]]) -> Query:
    """Messages in the form of `VLM.chat`."""
    turns: list[Message] = []
    images: list[Image.Image] = []
    for message in messages:
        if not {"role", "content"} <= message.keys():
            raise UsageError(
                f"a message needs 'role' and 'content', found: {', '.join(message) or 'nothing'}"
            )
        parts: list[Part] = []
        content = message["content"]
        for item in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if set(item) == {"type", "image"} and item["type"] == "image":
                images.append(_open(item["image"]))
                parts.append(IMAGE)
            elif set(item) == {"type", "text"} and item["type"] == "text":
                parts.append(item["text"])
            else:
                raise UsageError(
                    f"message content {item!r} is not possible; write {{'type': 'image', 'image': FILE}} "
                    "or {'type': 'text', 'text': TEXT}"
                )
        turns.append(Message(message["role"], tuple(parts)))
    if not turns or turns[-1].role != "user":
        raise UsageError("the last message must be the user's; there is nothing to answer")
    return Query(tuple(turns), tuple(images))


def _open(image: str | Path | Image.Image) -> Image.Image:
    return to_rgb(image) if isinstance(image, Image.Image) else open_image(image)


def model_inputs(model: VLM, queries: Sequence[Query]) -> dict[str, Any]:
    """Processed and on the model's device."""
    inputs = model.processor([q.conversation for q in queries], [q.images for q in queries])
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


@torch.inference_mode()
def answer(model: VLM, queries: Sequence[Query], **generation: Any) -> list[str]:
    """Generate an answer for each query, in left-padded batches, in the order given."""
    training = model.training
    model.eval()
    answers: list[str] = []
    try:
        for start in range(0, len(queries), BATCH):
            inputs = model_inputs(model, queries[start : start + BATCH])
            tokens_BL = model.generate(**inputs, **{**DEFAULTS, **generation})
            prompt_length = inputs["input_ids"].shape[1]
            answers += [model.processor.decode(row[prompt_length:]) for row in tokens_BL]
    finally:
        model.train(training)
    return answers


class _Closed(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation that nobody waits for."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], self.event.is_set(), device=input_ids.device)


def stream(model: VLM, query: Query, **generation: Any) -> Iterator[str]:
    """Pieces of one answer while they are made; an error in generation is raised here.

    An iterator that is closed or dropped early stops the generation. The model is in evaluation mode until
    the iterator ends, and then as before.
    """
    training = model.training
    try:
        yield from _pieces(model, model_inputs(model.eval(), [query]), {**DEFAULTS, **generation})
    finally:
        model.train(training)


def _pieces(model: VLM, inputs: dict[str, Any], generation: dict[str, Any]) -> Iterator[str]:
    streamer = TextIteratorStreamer(model.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed, failure = _Closed(), list[BaseException]()
    criteria = StoppingCriteriaList([*generation.pop("stopping_criteria", ()), closed])

    def generate() -> None:
        try:
            model.generate(**inputs, streamer=streamer, stopping_criteria=criteria, **generation)
        except BaseException as error:
            failure.append(error)
            streamer.end()

    worker = threading.Thread(target=generate, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:
        closed.event.set()
        worker.join()
    if failure:
        raise failure[0]
