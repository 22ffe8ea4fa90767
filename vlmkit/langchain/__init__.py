"""A VLM as a LangChain chat model: the only folder of this package that imports langchain-core."""

from __future__ import annotations

from vlmkit.errors import MissingExtraError

try:
    from vlmkit.langchain.blocks import image_block
    from vlmkit.langchain.chat import ChatVlmkit
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise MissingExtraError("langchain-core", "rag") from error

__all__ = ["ChatVlmkit", "image_block"]
