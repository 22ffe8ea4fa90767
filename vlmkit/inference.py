"""Questions to answers: batches, greedy by default, streaming."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from vlmkit.messages import Query, conversation, question

if TYPE_CHECKING:
    from vlmkit.vlm import VLM

__all__ = ["Query", "answer", "conversation", "model_inputs", "question", "stream"]

BATCH = 256
DEFAULTS = {"do_sample": False, "max_new_tokens": 64}


def model_inputs(model: VLM, queries: Sequence[Query]) -> dict[str, Any]:
    """Processed and on the model's device."""
    inputs = model.processor.prompts([q.conversation for q in queries], [q.images for q in queries])
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
            new = model.processor.post_process_image_text_to_text(tokens_BL[:, prompt_length:])
            answers += [text.strip() for text in new]
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
