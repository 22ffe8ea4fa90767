"""Other people's weights in our Vision Transformer: every tensor finds its place, or is named.

Shapes: N patches of the table, V width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlmkit.encoders.vit_config import stored_file, stored_json
from vlmkit.encoders.vit_names import is_unused, our_name
from vlmkit.errors import VlmkitError
from vlmkit.weights import resolve_weights

if TYPE_CHECKING:
    from vlmkit.encoders.vit import ViT

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BUILT = re.compile(r"blocks\.(\d+)\.")
# What the parts of a tensor are joined to, in order.
JOINED = {"qkv": ("q", "k", "v"), "mlp.0": ("gate", "up")}
# A linear head of ours, which no other checkpoint has: it starts at random where `embed_dim` asks for it.
OWN_HEAD = "head.weight"


def stored_files(weights: str) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        VlmkitError: There are none.
    """
    single = stored_file(weights, SINGLE)
    if single is not None:
        return [single]
    if stored_file(weights, INDEX) is None:
        raise VlmkitError(f"weights {weights!r} have neither {SINGLE} nor {INDEX}; vit reads these only")
    names = sorted(set(stored_json(weights, INDEX)["weight_map"].values()))
    files = {name: stored_file(weights, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise VlmkitError(f"weights {weights!r} lack {', '.join(missing)}, which {INDEX} names")
    return [file for file in files.values() if file is not None]


def load_weights(encoder: ViT, weights: str) -> None:
    """Load a run of vlmkit, or a checkpoint whose names are in the tables of `vit_names.py`.

    A linear head (`embed_dim`) that the checkpoint lacks stays random. Blocks above those that were built are
    left out.

    Raises:
        VlmkitError: Tensors are missing, left over or of another shape; names them.
    """
    config = stored_json(weights)
    if "encoders" in config:
        from vlmkit.checkpoint import load_part

        load_part(encoder, Path(resolve_weights(weights)), "encoders.0.")
        return
    stored = {name: t for file in stored_files(weights) for name, t in load_file(file).items()}
    tensors, unknown = renamed(stored)
    # DINOv3 has queries and values with a bias and keys without one: the same as a bias of zero.
    tensors = join_parts(tensors, keys_without_bias=config.get("key_bias", True) is False)
    wanted = encoder.state_dict()
    fold_prefix(tensors, wanted)
    tensors = {name: t for name, t in tensors.items() if name in wanted or not _above(name, encoder)}
    if OWN_HEAD in wanted:
        tensors[OWN_HEAD] = wanted[OWN_HEAD]
    _refuse(weights, wanted, tensors, unknown)
    encoder.load_state_dict(tensors)


def renamed(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors in float32 by our names, without those of no use here; and the names with no place."""
    found: dict[str, Tensor] = {}
    unknown = []
    for theirs in stored:
        ours = our_name(theirs)
        if ours is not None and ours not in found:
            found[ours] = stored[theirs].float()
        elif not is_unused(theirs):
            unknown.append(theirs)
    return found, unknown


def join_parts(tensors: Mapping[str, Tensor], keys_without_bias: bool = False) -> dict[str, Tensor]:
    """Queries, keys and values as one tensor, and so gate and up; parts that are not all there stay apart."""
    result = dict(tensors)
    for first in [name for name in tensors if re.fullmatch(r"blocks\.\d+\.(q|up)\.(weight|bias)", name)]:
        block, part, leaf = _pieces(first)
        if part == "up" and f"{block}.gate.{leaf}" not in result:
            result[f"{block}.mlp.0.{leaf}"] = result.pop(first)
            continue
        if part == "q" and leaf == "bias" and keys_without_bias:
            result.setdefault(f"{block}.k.bias", torch.zeros_like(result[first]))
        ours = "qkv" if part == "q" else "mlp.0"
        names = [f"{block}.{piece}.{leaf}" for piece in JOINED[ours]]
        if all(name in result for name in names):
            result[f"{block}.{ours}.{leaf}"] = torch.cat([result.pop(name) for name in names])
    return result


def _pieces(name: str) -> tuple[str, str, str]:
    block, part, leaf = name.rsplit(".", 2)
    return block, part, leaf


def fold_prefix(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Add the positions of prefix tokens to the tokens: here a table has patches only.

    The table of a ViT begins with one row for CLS, that of DeiT with one for the distillation token too. A
    table of any other length is left as it is, for its shape to be reported.
    """
    table, patches = tensors.get("positions"), wanted.get("positions")
    if table is None or patches is None or "cls" not in tensors:
        return
    tokens = [name for name in ("cls", "registers") if name in tensors]
    rows = table.shape[1] - patches.shape[1]
    counts = [tensors[name].shape[1] for name in tokens]
    if rows not in (1, sum(counts)):
        return
    start = 0
    for name, count in zip(tokens if rows > 1 else tokens[:1], counts, strict=False):
        tensors[name] = tensors[name] + table[:, start : start + count]
        start += count
    tensors["positions"] = table[:, rows:]


def _above(name: str, encoder: ViT) -> bool:
    """Whether a tensor belongs to what is not built above the selected layer."""
    block = BUILT.match(name)
    number = int(block[1]) if block else -1
    built = len(encoder.blocks)
    return built <= number < encoder.depth or (name.startswith("norm.") and built < encoder.depth)


def _refuse(
    weights: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], unknown: list[str]
) -> None:
    problems = {
        "missing": sorted(set(wanted) - set(found)),
        "unexpected": sorted([*unknown, *(set(found) - set(wanted))]),
        "of another shape": [
            f"{n} (found {_shape(found[n])}, needs {_shape(wanted[n])})"
            for n in sorted(set(wanted) & set(found))
            if found[n].shape != wanted[n].shape
        ],
    }
    said = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if said:
        raise VlmkitError(
            f"weights {weights!r}: tensors {'; '.join(said)}; the checkpoint does not belong to these options"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
