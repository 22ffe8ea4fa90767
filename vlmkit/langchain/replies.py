"""What a generation gives, as LangChain's messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from vlmkit.langchain.generation import End

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

PROVIDER = "vlmkit"
CAPABILITIES: ModelProfile = {
    "text_inputs": True,
    "image_inputs": True,
    "image_url_inputs": False,
    "pdf_inputs": False,
    "audio_inputs": False,
    "video_inputs": False,
    "image_tool_message": False,
    "pdf_tool_message": False,
    "text_outputs": True,
    "image_outputs": False,
    "audio_outputs": False,
    "video_outputs": False,
    "reasoning_output": False,
    "tool_calling": False,
    "tool_choice": False,
    "structured_output": False,
}


def chunk(event: str | End, model_name: str) -> ChatGenerationChunk:
    """A piece of an answer, or its end: all but text is in the last chunk, for LangChain adds chunks up."""
    if isinstance(event, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=event))
    message = AIMessageChunk(
        content="",
        usage_metadata=_usage(event),
        response_metadata=_metadata(event, model_name),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def result(answer: Iterable[str | End], model_name: str) -> ChatResult:
    """A whole answer: its pieces and its end."""
    *pieces, end = answer
    assert isinstance(end, End)
    message = AIMessage(
        content="".join(str(piece) for piece in pieces),
        usage_metadata=_usage(end),
        response_metadata=_metadata(end, model_name),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _metadata(end: End, model_name: str) -> dict[str, Any]:
    return {"finish_reason": end.reason, "model_name": model_name, "model_provider": PROVIDER}


def _usage(end: End) -> UsageMetadata:
    details: Any = {"image": end.image_tokens}  # a key of our own: LangChain's are those of sound and caches
    return UsageMetadata(
        input_tokens=end.input_tokens,
        output_tokens=end.output_tokens,
        total_tokens=end.input_tokens + end.output_tokens,
        input_token_details=details,
    )
