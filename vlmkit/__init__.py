"""vlmkit: vision-language models from any encoder and language model, multimodal RAG on the same encoders.

Names are loaded when they are first used, so that `import vlmkit` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "VLM": "vlmkit.vlm",
    "VLMConfig": "vlmkit.config",
    "Processor": "vlmkit.processor",
    "ChatVlmkit": "vlmkit.langchain",
    "load_encoder": "vlmkit.embedders",
    "load_recipe": "vlmkit.recipe",
    "train_recipe": "vlmkit.train.run",
    "VlmkitError": "vlmkit.errors",
    "UsageError": "vlmkit.errors",
    "Index": "vlmkit_retrieval",
    "answer_question": "vlmkit_retrieval",
}

if TYPE_CHECKING:
    from vlmkit.config import VLMConfig
    from vlmkit.embedders import load_encoder
    from vlmkit.errors import UsageError, VlmkitError
    from vlmkit.langchain import ChatVlmkit
    from vlmkit.processor import Processor
    from vlmkit.recipe import load_recipe
    from vlmkit.train.run import train_recipe
    from vlmkit.vlm import VLM
    from vlmkit_retrieval import Index, answer_question


def register_auto_classes() -> None:
    """Make transformers' auto classes know vlmkit's models; done when `vlmkit.VLM` is first touched."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    # From its own module: under transformers' top level older releases ask for torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from vlmkit.config import VLMConfig
    from vlmkit.image_processor import VLMImageProcessor
    from vlmkit.processor import Processor
    from vlmkit.vlm import VLM

    AutoConfig.register(VLMConfig.model_type, VLMConfig, exist_ok=True)
    AutoModelForImageTextToText.register(VLMConfig, VLM, exist_ok=True)
    AutoImageProcessor.register(VLMConfig, VLMImageProcessor, exist_ok=True)
    AutoProcessor.register(VLMConfig, Processor, exist_ok=True)
    # Pipelines read the names of this table alone, and log an error about a model that is not in it.
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[VLMConfig.model_type] = VLM.__name__


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'vlmkit' has no attribute {name!r}")
    found = getattr(importlib.import_module(_NAMES[name]), name)
    if name == "VLM":
        register_auto_classes()
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


__all__ = [
    "VLM",
    "ChatVlmkit",
    "Index",
    "Processor",
    "UsageError",
    "VLMConfig",
    "VlmkitError",
    "__version__",
    "answer_question",
    "load_encoder",
    "load_recipe",
    "register_auto_classes",
    "train_recipe",
]
