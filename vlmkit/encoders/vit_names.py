"""How other people's ViT tensors are called here: one table for transformers' published names and timm's.

transformers' ViT, DeiT, DINOv2 (with and without registers) and DINOv3 are read by the names in their files,
which differ from those in memory; names of memory are in the table too, where they are others.
"""

from __future__ import annotations

import re

# What whole models with a head put in front.
ROOTS = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.")
BLOCK = re.compile(r"(?:encoder\.layer|model\.layer|layer|layers|blocks)\.(\d+)\.(.+)")
LEAVES = ("weight", "bias")

OUTSIDE = {
    "embeddings.cls_token": "cls",
    "cls_token": "cls",
    "embeddings.register_tokens": "registers",
    "reg_token": "registers",
    # DeiT's distillation token is one more token that is no patch.
    "embeddings.distillation_token": "registers",
    "dist_token": "registers",
    "embeddings.position_embeddings": "positions",
    "pos_embed": "positions",
    "embeddings.patch_embeddings.projection": "stem.projection",
    "embeddings.patch_embeddings": "stem.projection",
    "patch_embed.proj": "stem.projection",
    "layernorm": "norm",
    "norm": "norm",
}
# `q`, `k`, `v` and `gate`, `up` are joined: to `qkv`, and to `mlp.0`, which `up` is on its own.
INSIDE = {
    "norm1": "norm1",
    "layernorm_before": "norm1",
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attn.qkv": "qkv",
    "attn.q_norm": "q_norm",
    "attn.k_norm": "k_norm",
    "attention.output.dense": "proj",
    "attention.o_proj": "proj",
    "attn.proj": "proj",
    "layer_scale1.lambda1": "layer_scale1",
    "ls1.gamma": "layer_scale1",
    "norm2": "norm2",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.0",
    "mlp.fc1": "mlp.0",
    "mlp.weights_in": "mlp.0",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "output.dense": "mlp.2",
    "mlp.fc2": "mlp.2",
    "mlp.weights_out": "mlp.2",
    "mlp.down_proj": "mlp.2",
    "layer_scale2.lambda1": "layer_scale2",
    "ls2.gamma": "layer_scale2",
}
# Heads of the task that a model was trained for, and the vector that stood for hidden patches.
UNUSED = (
    "classifier", "cls_classifier", "distillation_classifier", "pooler.dense", "head", "head_dist",
    "embeddings.mask_token", "mask_token",
)  # fmt: skip


def our_name(theirs: str) -> str | None:
    """What a tensor is called here; None for a name that is in no table."""
    name, leaf = _split(theirs)
    block = BLOCK.fullmatch(name)
    if block is None:
        found = OUTSIDE.get(name)
        return found and f"{found}{leaf}"
    part = INSIDE.get(block[2])
    return part and f"blocks.{block[1]}.{part}{leaf}"


def is_unused(theirs: str) -> bool:
    """Whether a tensor belongs to what an encoder does not have."""
    return _split(theirs)[0] in UNUSED


def _split(theirs: str) -> tuple[str, str]:
    """Name of a module, or of a parameter of its own, and `.weight`, `.bias` or nothing."""
    for root in ROOTS:
        theirs = theirs.removeprefix(root)
    name, _, leaf = theirs.rpartition(".")
    return (name, f".{leaf}") if leaf in LEAVES else (theirs, "")
