"""What the files of a sentence-transformers checkpoint say: which parts, limits, prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlmkit.encoders.hub import cached_path
from vlmkit.encoders.sentence_parts import DenseLayer, poolings_of
from vlmkit.errors import VlmkitError

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
# Of a transformer's own configuration; what else it states must be empty.
_KNOWN = ("max_seq_length", "do_lower_case", "modality_config", "module_output_name", "transformer_task")
_TASKS = (None, "feature-extraction")


@dataclass(frozen=True)
class Sentences:
    """How a checkpoint turns texts into vectors.

    Attributes:
        limit: Tokens of a text, at most; None for the model's own limit.
        lower: Texts are put in small letters.
        poolings: Names in `POOLINGS`.
        dense: Layers behind the pooling.
        normalize: Vectors have unit length.
        query, document: Put in front of a query, and of any other text.
    """

    limit: int | None
    lower: bool
    poolings: tuple[str, ...]
    dense: tuple[DenseLayer, ...]
    normalize: bool
    query: str
    document: str

    def stated(self) -> list[Any]:
        """All that changes vectors besides tensors, as JSON values."""
        layers = [str(layer) for layer in self.dense]
        return [
            self.limit, self.lower, self.poolings, layers, self.normalize, self.query, self.document
        ]  # fmt: skip


def read_sentences(reference: str) -> Sentences:
    """Read a checkpoint's description; one without `modules.json` is pooled by the mean.

    Raises:
        VlmkitError: It has modules that are not in `MODULES`, or in another order, or cannot be read.
    """
    modules = _json(reference, "modules.json") or [{"type": "Transformer", "path": ""}, {"type": "Pooling"}]
    kinds = [str(module["type"]).rpartition(".")[-1] for module in modules]
    _check_kinds(reference, kinds)
    folders = [str(module.get("path", "")) for module in modules]
    own = _json(reference, _inside(folders[0], "sentence_bert_config.json")) or {}
    unknown = {key: value for key, value in own.items() if key not in _KNOWN and value}
    if unknown or own.get("transformer_task") not in _TASKS:
        raise VlmkitError(
            f"text encoder {reference!r}: {unknown or own['transformer_task']} is not supported"
        )
    pooling = _json(reference, _inside(folders[1], "config.json")) if folders[1] else None
    prompts: Mapping[str, str] = (_json(reference, "config_sentence_transformers.json") or {}).get(
        "prompts"
    ) or {}
    document = next((prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), "")
    return Sentences(
        own.get("max_seq_length"),
        bool(own.get("do_lower_case")),
        tuple(poolings_of(pooling or {})),
        tuple(
            _dense(reference, folder) for folder, kind in zip(folders, kinds, strict=True) if kind == "Dense"
        ),
        "Normalize" in kinds,
        prompts.get("query") or "",
        document,
    )


def _check_kinds(reference: str, kinds: list[str]) -> None:
    unknown = [kind for kind in kinds if kind not in MODULES]
    ordered = kinds[:2] == ["Transformer", "Pooling"] and "Normalize" not in kinds[:-1]
    if unknown or not ordered or kinds.count("Pooling") > 1:
        raise VlmkitError(
            f"text encoder {reference!r} has the modules {', '.join(kinds)}; possible are a Transformer, a "
            "Pooling, any number of Dense, and a Normalize at the end"
        )


def _dense(reference: str, folder: str) -> DenseLayer:
    from safetensors.torch import load_model

    layer = DenseLayer(_json(reference, _inside(folder, "config.json")) or {})
    weights = cached_path(reference, _inside(folder, "model.safetensors"))
    if weights is None:
        raise VlmkitError(
            f"text encoder {reference!r} has no {folder}/model.safetensors; convert it to safetensors"
        )
    load_model(layer, weights)
    frozen: nn.Module = layer.eval().requires_grad_(False)
    assert isinstance(frozen, DenseLayer)
    return frozen


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _json(reference: str, name: str) -> Any:
    path = cached_path(reference, name)
    try:
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlmkitError(f"text encoder {reference!r}: {name} is not JSON ({error})") from error
