"""transformers' own processor and model as the reference of published weights.

Only for the models in `IMAGES`, whose retrieval vector is one by definition.

Shapes: B images, N texts, E retrieval width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmkit.encoders.hub import load_pretrained, read_config
from vlmkit.testing.subject import ImageReference, TextReference


def _features(model: Any, inputs: Any) -> Tensor:
    """The projected vector of a model of two halves."""
    vectors_BE: Tensor = model.get_image_features(**inputs).pooler_output
    return vectors_BE


def _pooler(model: Any, inputs: Any) -> Tensor:
    """The vector of a model of images alone."""
    vectors_BE: Tensor = model(**inputs).pooler_output
    return vectors_BE


IMAGES: dict[str, Callable[[Any, Any], Tensor]] = {
    "clip": _features,
    "siglip": _features,
    "siglip2": _features,
    "dinov2": _pooler,
    "dinov2_with_registers": _pooler,
}
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
    model = load_pretrained(AutoModel, weights, dtype="float32").eval()
    texts = _texts(weights, model) if config.model_type in TEXTS else None
    return _images(weights, model), texts


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
