"""Causal language models from checkpoints of which no tensor is missing."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from vlmkit.errors import VlmkitError


def load_stored(reference: str, path: str, **arguments: Any) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, for which every tensor of the model must be stored.

    transformers fills what a checkpoint does not hold with random numbers, and warns. A head that is tied to
    the embeddings is not stored by design, and not missing. What a checkpoint holds beside the model (more
    heads, old buffers) is left to the report of transformers.

    Args:
        reference: What the user wrote, for the message.
        path: What `from_pretrained` takes.
        arguments: More arguments of `from_pretrained`.

    Raises:
        VlmkitError: Names the tensors that are missing or of another shape; or the weights are adapters.
    """
    # Other shapes are in `info` and refused below, all together.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = AutoModelForCausalLM.from_pretrained(path, **told, **arguments)
    if getattr(model, "_hf_peft_config_loaded", False):
        # Left beside the weights, they would be saved under names that no configuration knows.
        raise VlmkitError(
            f"language model {reference!r} is adapters over another one; merge them first, with peft: "
            "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OTHER)"
        )
    shapes = {key[0] for key in info["mismatched_keys"]}
    for kind, names in (("missing", set(info["missing_keys"]) - shapes), ("mismatched", shapes)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise VlmkitError(
                f"language model {reference!r}: {kind} tensors: {', '.join(sorted(names)[:5])}{more}; "
                "nothing is made up in their place, take a complete checkpoint of this architecture"
            )
    loaded: PreTrainedModel = model
    return loaded
