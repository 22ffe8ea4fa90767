"""What trains in a stage, and how fast: applied to the model, and said aloud."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from vlmkit.errors import MissingExtraError, UsageError
from vlmkit.llm.attend import attend_in_segments
from vlmkit.quantize import parameter_size
from vlmkit.recipe import Lora, PartName, Stage
from vlmkit.train.adapters import has_adapters, merge_adapters
from vlmkit.vlm import VLM

logger = logging.getLogger(__name__)

PARTS: tuple[PartName, ...] = ("encoder", "connector", "llm")


@dataclass(frozen=True)
class PartRow:
    """One row of the table that is shown before training.

    Attributes:
        part: encoder, connector or llm.
        parameters: All of them.
        trainable: Those that train.
        lr: Their learning rate; None if frozen.
        note: `LoRA r=8` or `frozen`.
    """

    part: PartName
    parameters: int
    trainable: int
    lr: float | None
    note: str


def part_module(model: VLM, part: PartName) -> nn.Module:
    """The module behind a part's name."""
    modules: dict[PartName, nn.Module] = {
        "encoder": model.encoders,
        "connector": nn.ModuleList([model.connector, model.splice]),
        "llm": model.language_model,
    }
    return modules[part]


def trainable(module: nn.Module) -> int:
    """Number of parameters that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def apply_stage(model: VLM, stage: Stage) -> list[PartRow]:
    """Freeze and unfreeze parts, put LoRA in; returns the table of what trains."""
    rows = []
    model.requires_grad_(False)
    attend_in_segments(model.language_model, stage.pack_length is not None)
    if stage.gradient_checkpointing:
        recompute_activations(model.language_model, True)
        for encoder in model.encoders if "encoder" in stage.train else ():
            if recomputing(encoder) is None:
                logger.warning("encoder %s keeps its activations: it cannot compute them again", encoder.name)
            else:
                recompute_activations(recomputing(encoder), True)
    for part in PARTS:
        wanted = stage.train.get(part)
        parameters = sum(parameter_size(p) for p in part_module(model, part).parameters())
        if wanted is not None and wanted.lora is not None:
            add_lora(model, wanted.lora)
        elif wanted is not None:
            part_module(model, part).requires_grad_(True)
        training = trainable(part_module(model, part))
        note = "frozen" if wanted is None else f"LoRA r={wanted.lora.r}" if wanted.lora else "full"
        rows.append(PartRow(part, parameters, training, wanted.lr if wanted else None, note))
    if not any(row.trainable for row in rows):
        raise UsageError(f"stage {stage.name!r} trains no parameter; give a part a learning rate")
    return rows


def add_lora(model: VLM, lora: Lora) -> None:
    """Wrap the language model's linear layers, and nothing else's: the targets are matched within it only.

    Raises:
        UsageError: No layer has one of the target names.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise MissingExtraError("peft", "train") from None
    names = "|".join(map(re.escape, lora.targets))
    # GPT-2's linear layers are called Conv1D.
    layers = [n for n, m in model.language_model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    linear = {name.rsplit(".", 1)[-1] for name in layers}
    if not linear & set(lora.targets):
        raise UsageError(
            f"lora targets {', '.join(lora.targets)} match no linear layer of the language model "
            f"(it has: {', '.join(sorted(linear))})"
        )
    _refuse_tied(model, lora)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"(.*\.)?({names})",
        bias="none",
    )
    model.language_model = get_peft_model(model.language_model, config)


def _refuse_tied(model: VLM, lora: Lora) -> None:
    """An adapter on a head that shares its weight with the embeddings could not be merged into it alone."""
    language_model = model.language_model
    read, written = language_model.get_input_embeddings(), language_model.get_output_embeddings()
    if written is None or read.weight is not written.weight:
        return
    tied = {n.rsplit(".", 1)[-1] for n, m in language_model.named_modules() if m in (read, written)}
    if tied & set(lora.targets):
        raise UsageError(
            f"lora targets {', '.join(sorted(tied & set(lora.targets)))}: embeddings and head are one weight "
            "here, and an adapter of one, merged, would change both; leave it out of the targets"
        )


def recomputing(encoder: nn.Module) -> Any:
    """What of an encoder can compute its activations again: itself, its tower of transformers, or None."""
    for module in (encoder, getattr(encoder, "vision", None)):
        if hasattr(module, "gradient_checkpointing_enable"):
            return module
    return None


def recompute_activations(module: Any, on: bool) -> None:
    """Gradient checkpointing, by the name that this transformers has for it."""
    new = hasattr(module, "activation_checkpointing_enable")
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    if on:
        getattr(module, f"{name}_enable")({"use_reentrant": False})
    else:
        getattr(module, f"{name}_disable")()


def finish_stage(model: VLM, check: bool = True) -> float | None:
    """Merge adapters into the weights, so that what is saved is a plain model; see `merge_adapters`.

    Args:
        model: With a stage applied.
        check: Compare logits before and after; not possible on meta tensors.

    Returns:
        By how much the logits differ; None where there was nothing to merge, or it was not checked.

    Raises:
        VlmkitError: They differ by more than rounding does.
    """
    # Before the merge, whose rows for the comparison are of one sample.
    attend_in_segments(model.language_model, False)
    changed = None
    if has_adapters(model.language_model):
        model.language_model, changed = merge_adapters(model.language_model, check)
    for module in (model.language_model, *filter(None, map(recomputing, model.encoders))):
        recompute_activations(module, False)
    for parameter in model.parameters():
        # Integers that hold 4-bit numbers have no gradient.
        parameter.requires_grad_(parameter.is_floating_point())
    return changed
