"""transformers' own processor and model as the reference of published weights.

Only for the models in `IMAGES`, whose retrieval vector is one by definition.

Shapes: B images, N texts, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmkit.encoders.hub import load_pretrained, read_config
from vlmkit.errors import VlmkitError
from vlmkit.testing.subject import ImageReference, TextReference


def _features(model: Any, inputs: Any) -> Tensor:
    """The projected vector of a model of two halves."""
    vectors_BE: Tensor = model.get_image_features(**inputs).pooler_output
    return vectors_BE


def _pooler(model: Any, inputs: Any) -> Tensor:
    """The vector of a model of images alone."""
    vectors_BE: Tensor = model(**inputs).pooler_output
    return vectors_BE


def _cls(model: Any, inputs: Any) -> Tensor:
    """The CLS token after the last norm, where the model's own pooler is another layer, or there is none."""
    vectors_BE: Tensor = model(**inputs).last_hidden_state[:, 0]
    return vectors_BE


IMAGES: dict[str, Callable[[Any, Any], Tensor]] = {
    "clip": _features,
    "siglip": _features,
    "siglip2": _features,
    "dinov2": _pooler,
    "dinov2_with_registers": _pooler,
    "dinov3_vit": _pooler,
    "vit": _cls,
    "vit_mae": _cls,
    "swin": _pooler,
    "convnext": _pooler,
}
# Options that change neither pixels nor vectors.
KEEPING = {"weights", "layer"}
# Fields that are other in the reference: an encoder sees every patch.
CHANGED: dict[str, dict[str, Any]] = {"vit_mae": {"mask_ratio": 0.0}}
# How each was trained to see texts: CLIP's padding is masked, SigLIP's is attended to.
TEXTS: dict[str, dict[str, Any]] = {
    "clip": {"padding": True},
    "siglip": {"padding": "max_length"},
    "siglip2": {"padding": "max_length"},
}


def transformers_reference(weights: str) -> tuple[ImageReference | None, TextReference | None]:
    """References of pictures and of texts for `check_encoder`; None where there is none.

    Args:
        weights: A reference to a checkpoint that transformers reads, whole.

    Raises:
        VlmkitError: The checkpoint cannot be read.
    """
    from transformers import AutoModel

    config = read_config(weights)
    if config.model_type not in IMAGES:
        return None, None
    for name, value in CHANGED.get(config.model_type, {}).items():
        setattr(config, name, value)
    model = load_pretrained(AutoModel, weights, config=config, dtype="float32").eval()
    texts = _texts(weights, model) if config.model_type in TEXTS else None
    return _images(weights, model), texts


def why_none(weights: str, family: str, options: Iterable[str]) -> str:
    """Why there is no reference for an encoder with published weights; empty where there is one.

    Args:
        weights: As for `transformers_reference`.
        family: The encoder that reads them.
        options: Names of the options that are stated for it.
    """
    changed = sorted(set(options) - KEEPING)
    if changed:
        return f"the reference is left out because of {', '.join(changed)}"
    try:
        kind = read_config(weights).model_type
    except VlmkitError as error:
        return f"no reference: {error}"
    if kind not in IMAGES:
        return f"no reference for model type {kind!r} (there is one for {', '.join(IMAGES)})"
    if family == "transformers" and IMAGES[kind] is _cls:
        return f"no reference for model type {kind!r} by its pooler_output"
    return ""


def _images(weights: str, model: Any) -> ImageReference:
    # From its own module: under transformers' top level older releases ask for torchvision.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processor = load_pretrained(AutoImageProcessor, weights, backend="pil")
    vectors = IMAGES[model.config.model_type]

    @torch.no_grad()
    def embed(images: Sequence[Image.Image]) -> Tensor:
        return vectors(model, processor(list(images), return_tensors="pt"))

    return embed


def _texts(weights: str, model: Any) -> TextReference:
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(AutoTokenizer, weights)
    tokenizer.padding_side = "right"
    limit, padding = model.config.text_config.max_position_embeddings, TEXTS[model.config.model_type]
    kept = tuple(["input_ids", "attention_mask"] if padding["padding"] is True else ["input_ids"])

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(list(texts), truncation=True, max_length=limit, return_tensors="pt", **padding)
        vectors_NE: Tensor = model.get_text_features(**{name: tokens[name] for name in kept}).pooler_output
        return vectors_NE

    return embed
