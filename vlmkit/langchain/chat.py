"""A VLM as a LangChain chat model: answers whole or as a stream, with images and the tokens they took."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from PIL import Image
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from vlmkit import register_auto_classes
from vlmkit.errors import UsageError
from vlmkit.langchain.blocks import Fetch
from vlmkit.langchain.generation import Settings, image_tokens
from vlmkit.langchain.messages import read_parts, read_query
from vlmkit.langchain.replies import CAPABILITIES, PROVIDER, chunk, result
from vlmkit.langchain.threads import async_events, events
from vlmkit.messages import Query
from vlmkit.vlm import VLM

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

# What one call may change; LangChain itself adds `stream`.
OF_A_CALL = ("max_tokens", "temperature", "timeout")
NO_TOOLS = "ChatVlmkit calls no tools and gives no structured output; parse its text (StrOutputParser)"
TOOLS = {"tools", "tool_choice", "functions", "function_call", "response_format"}


class ChatVlmkit(BaseChatModel):
    """Answers messages with text and images.

    `ChatVlmkit(model="runs/quickstart").invoke("...")`, and all that LangChain does with a chat model:
    stream, batch, async, callbacks, `prompt | chat`. A model answers one question at a time, in a thread of
    its own; an answer whose stream is closed, or whose task is cancelled, is not made to its end.

    Refused with an error: tools, audio, video and files, images by address (unless `fetch_image` is given),
    local paths in messages, text with the tokenizer's control tokens.

    Attributes:
        model: A run or saved model (folder or hub id), or a loaded `VLM`.
        temperature: 0 takes the likeliest token; above that tokens are sampled.
        max_tokens: Most tokens of an answer.
        stop: Sequences that end an answer and are no part of it.
        timeout: Seconds after which an answer ends where it is, with `finish_reason` `timeout`.
        fetch_image: Gives the bytes behind an http(s) address in a message. A stranger's message can name
            addresses inside your network: look at the address, and at every redirect, before you open it.
        streaming: Whether `invoke` goes through the stream, too.
        max_retries: Taken because hosted models have it; there is nothing here to try again.
        api_key: Likewise; nothing is sent anywhere.
    """

    # A misspelt argument is an error, and no setting that is silently left out.
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: Any = Field(repr=False, exclude=True)
    temperature: float = 0.0
    max_tokens: int = 256
    stop: list[str] | None = None
    timeout: float | None = None
    fetch_image: Fetch | None = Field(default=None, repr=False, exclude=True)
    streaming: bool = False
    max_retries: int | None = None
    api_key: SecretStr | None = Field(default=None, repr=False, exclude=True)
    _vlm: VLM = PrivateAttr()
    _identity: str = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        """Load the model, and check what was given: after pydantic, which would wrap our errors in its."""
        super().__init__(**fields)
        self._settings(None, {})
        if isinstance(self.model, VLM):
            # Answers of two models that were given as objects are never taken for each other by a cache.
            self._vlm, self._identity = self.model, uuid.uuid4().hex
        elif isinstance(self.model, str | os.PathLike):
            register_auto_classes()  # else transformers warns of a model type that it does not know
            self._vlm, self._identity = VLM.from_pretrained(self.model), os.fspath(self.model)
        else:
            raise UsageError(
                f"a model of type {type(self.model).__name__} is not possible; give a run, a hub id or a VLM"
            )

    @property
    def model_name(self) -> str:
        """The model in messages and traces: the path or hub id that it is from."""
        return str(self._vlm.name_or_path) or VLM.config_class.model_type

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What a cache tells answers apart by; LangChain puts the stop sequences of the call beside it."""
        return {"model": self._identity, "settings": str(self._settings(None, {}))}

    def _resolve_model_profile(self) -> ModelProfile:
        return {**CAPABILITIES, "image_url_inputs": self.fetch_image is not None}

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> NoReturn:
        """Not possible.

        Raises:
            UsageError: Always.
        """
        raise UsageError(NO_TOOLS)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text, by the model's tokenizer."""
        ids: list[int] = self._vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of messages with their images, without what the prompt format writes around them.

        Raises:
            VlmkitError: There are tools, or a message holds something else than text and images.
        """
        if tools:
            raise UsageError(NO_TOOLS)
        parts = [part for m in messages for part in read_parts(m, f"a message ({m.type})", self.fetch_image)]
        images = image_tokens(self._vlm, [part.size for part in parts if isinstance(part, Image.Image)])
        return images + sum(len(self.get_token_ids(part)) for part in parts if isinstance(part, str))

    def _settings(self, stop: list[str] | None, call: dict[str, Any]) -> Settings:
        """How to answer one call."""
        if call.keys() & TOOLS:
            raise UsageError(NO_TOOLS)
        unknown = ", ".join(sorted(call.keys() - {*OF_A_CALL, "stream"}))
        if unknown:
            raise UsageError(f"a call cannot take {unknown}; possible: {', '.join(OF_A_CALL)}, stop")
        max_tokens, temperature, timeout = (call.get(name, getattr(self, name)) for name in OF_A_CALL)
        return Settings(max_tokens, temperature, tuple((self.stop if stop is None else stop) or ()), timeout)

    def _asked(
        self, messages: list[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> tuple[VLM, Callable[[], Query], Settings]:
        """The arguments of `events`; messages are read where the answer is made, off the caller's thread."""
        read = partial(read_query, list(messages), self._vlm.processor.tokenizer, self.fetch_image)
        return self._vlm, read, self._settings(stop, call)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return result(events(*self._asked(messages, stop, kwargs)), self.model_name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aclosing(async_events(*self._asked(messages, stop, kwargs))) as answer:
            return result([event async for event in answer], self.model_name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(events(*self._asked(messages, stop, kwargs))) as answer:
            for event in answer:
                piece = chunk(event, self.model_name)
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece.text, chunk=piece)
                yield piece

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(async_events(*self._asked(messages, stop, kwargs))) as answer:
            async for event in answer:
                piece = chunk(event, self.model_name)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece.text, chunk=piece)
                yield piece
