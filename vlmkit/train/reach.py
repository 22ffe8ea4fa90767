"""Parameters that a stage's objectives do not reach: they do not train, so no process waits for them.

An encoder brings more than a stage may use: layers behind the one that is read, a retrieval head. Their
gradient is none at all. DDP and FSDP wait for the gradient of every parameter that trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vlmkit.train.module import StageModule
from vlmkit.train.stage import PARTS, PartRow, part_module, trainable


def freeze_unreached(module: StageModule, rows: Sequence[PartRow]) -> list[PartRow]:
    """Stop training what no loss can depend on; returns the table with the number of what does.

    Encoders are asked by a pass over one blank image. The language model and the connector are reached by
    `next_token` alone, and then as a whole.

    Args:
        module: With the stage applied.
        rows: From `apply_stage`.
    """
    reached: set[int] = set()
    if any(p.requires_grad for p in module.vlm.encoders.parameters()):
        reached |= {id(p) for p in leaves(_read_by_objectives(module))}
    if "next_token" in module.weights:
        for part in PARTS[1:]:
            reached |= {id(p) for p in part_module(module.vlm, part).parameters()}
    for parameter in module.vlm.parameters():
        if parameter.requires_grad and id(parameter) not in reached:
            parameter.requires_grad_(False)
    return [replace(row, trainable=trainable(part_module(module.vlm, row.part))) for row in rows]


def _read_by_objectives(module: StageModule) -> list[Tensor]:
    """What objectives read of the encoders' features of a blank image."""
    training = [m for m in module.modules() if m.training]
    # No dropout is drawn and no statistics of batches move.
    nn.Module.train(module, False)
    features = module.blank_features()
    for part in training:
        part.training = True
    read = [own.patches_TV for own in features] if "next_token" in module.weights else []
    pooled = features[0].pooled_BE
    return [*read, pooled] if module.contrastive is not None and pooled is not None else read


def leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that tensors were computed from, out of their graph: no gradient is computed."""
    nodes: list[Any] = [tensor.grad_fn for tensor in outputs]
    seen, found = set(), []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [parent for parent, _ in node.next_functions]
    return found
