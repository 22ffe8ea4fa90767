"""What every adapter of a `transformers` vision tower does: options to a configuration, blocks to features.

Shapes: I views, P prefix + patches, V width. See `hf.py` for the adapters' base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.activations import ACT2FN

from vlmkit.encoders.hub import read_config
from vlmkit.encoders.known import known_arguments, known_ids
from vlmkit.errors import UsageError, VlmkitError, unknown_name

# Fields that older transformers read where they are stored, without a default of their own.
ABSENT = {"vision_use_head": True, "num_register_tokens": 0}
SIDES = ("image_size", "patch_size")


def resolve_options(
    family: str, options: dict[str, Any], read: Callable[[str, Collection[str]], dict[str, Any]]
) -> dict[str, Any]:
    """Complete options by what the checkpoint in `weights` states; an option that is given wins.

    Args:
        family: Name of the encoder.
        options: As in a recipe.
        read: (weights, names of the options that are given) to what a checkpoint outside of `KNOWN` states.

    Raises:
        UsageError: Both `weights` and `vision_config` are given, or the checkpoint is of another family.
        VlmkitError: The checkpoint cannot be read.
    """
    weights = options.pop("weights", None)
    if weights is None:
        return options
    if options.pop("vision_config", None) is not None:
        raise UsageError(f"{family}: found weights and vision_config; give one of them")
    found = known_arguments(family, weights)
    return {**(read(weights, options) if found is None else found), **options}


def read_halves(
    family: str, weights: str, model_type: str, keys: Sequence[str]
) -> tuple[dict[str, Any], Any]:
    """`vision_config` and `text_tower` of a checkpoint of two halves, or of only its vision half.

    Returns:
        The two arguments, and the configuration they are read from.

    Raises:
        VlmkitError: The checkpoint cannot be read, or is of another kind.
    """
    config = read_config(weights)
    if config.model_type == f"{model_type}_vision_model":
        return {"vision_config": stated(config, keys), "text_tower": None}, config
    if config.model_type != model_type:
        raise wrong_model(family, weights, config.model_type)
    return {"vision_config": stated(config.vision_config, keys), "text_tower": weights}, config


def wrong_model(family: str, weights: str, found: str) -> VlmkitError:
    """An error for a checkpoint of another kind."""
    return VlmkitError(
        f"weights {weights!r} are a {found!r} model; the encoder {family!r} takes such as "
        f"{', '.join(known_ids(family))}"
    )


def stated(config: Any, keys: Sequence[str]) -> dict[str, Any]:
    """The fields of a configuration that make a module, as JSON has them; a square is stated by its side."""
    found = {k: getattr(config, k, ABSENT[k]) if k in ABSENT else getattr(config, k) for k in keys}
    return {key: _plain(key, value) for key, value in found.items()}


def _plain(key: str, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    square = key in SIDES and len(value) == 2 and value[0] == value[1]
    return value[0] if square else list(value)


def tower_config(family: str, cls: Any, keys: Sequence[str], given: Mapping[str, Any] | None) -> Any:
    """A vision configuration of class `cls` from given fields; absent ones have its defaults.

    Raises:
        UsageError: There are none, or a field does not exist or fit.
    """
    if given is None:
        raise UsageError(
            f"{family}: found neither; give weights (such as {known_ids(family)[0]}) or vision_config"
        )
    for key in given:
        if key not in keys:
            raise unknown_name(f"{family} vision_config field", key, keys)
    try:
        config = cls(**{key: _plain(key, value) for key, value in given.items()})
    except StrictDataclassError as error:
        raise UsageError(f"{family}: vision_config does not fit: {' '.join(str(error).split())}") from error
    _check_config(family, config)
    return config


def _check_config(family: str, config: Any) -> None:
    for name, size in stated(config, [name for name in SIDES if hasattr(config, name)]).items():
        if not isinstance(size, int) or size < 1:
            raise UsageError(
                f"{family}: found {name} {size}; give a whole number: patches and views are square"
            )
    for width, heads in _attention(config):
        if heads < 1 or width % heads:
            raise UsageError(
                f"{family}: vision_config does not fit: hidden_size {width} is not a multiple of "
                f"num_attention_heads {heads}"
            )
    if config.hidden_act not in ACT2FN:
        raise unknown_name(f"{family} hidden_act", config.hidden_act, ACT2FN)


def _attention(config: Any) -> list[tuple[int, int]]:
    """Width and heads of each stage of a tower; none of a convolutional one."""
    heads = getattr(config, "num_attention_heads", [])
    if isinstance(heads, int):
        return [(config.hidden_size, heads)]
    return [(config.embed_dim * 2**stage, number) for stage, number in enumerate(heads)]


def run_blocks(
    blocks: Iterable[Callable[[Tensor], Tensor]], hidden_IPV: Tensor, selected: int
) -> tuple[Tensor, Tensor]:
    """The hidden state above `selected` blocks, and that above all; the others are not kept."""
    selected_IPV = hidden_IPV
    for i, block in enumerate(blocks, start=1):
        hidden_IPV = block(hidden_IPV)
        selected_IPV = hidden_IPV if i == selected else selected_IPV
    return selected_IPV, hidden_IPV
