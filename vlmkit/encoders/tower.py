"""What every adapter of a `transformers` vision tower does: options to a configuration, blocks to features.

Shapes: I views, P prefix + patches, V width.
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
    """The fields of a configuration that make a module."""
    return {key: getattr(config, key) for key in keys}


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
        config = cls(**given)
    except StrictDataclassError as error:
        raise UsageError(f"{family}: vision_config does not fit: {' '.join(str(error).split())}") from error
    _check_config(family, config)
    return config


def _check_config(family: str, config: Any) -> None:
    for name in ("image_size", "patch_size"):
        size = getattr(config, name, 1)
        if not isinstance(size, int) or size < 1:
            raise UsageError(
                f"{family}: found {name} {size}; give a whole number: patches and views are square"
            )
    if config.hidden_size % config.num_attention_heads:
        raise UsageError(
            f"{family}: vision_config does not fit: hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}"
        )
    if config.hidden_act not in ACT2FN:
        raise unknown_name(f"{family} hidden_act", config.hidden_act, ACT2FN)


def rgb(family: str, name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Three numbers, for red, green and blue.

    Raises:
        UsageError: There are not three.
    """
    if len(values) != 3:
        raise UsageError(f"{family}: {name} has {len(values)} values; give three, for red, green and blue")
    return (float(values[0]), float(values[1]), float(values[2]))


def run_blocks(
    blocks: Iterable[Callable[[Tensor], Tensor]], hidden_IPV: Tensor, selected: int
) -> tuple[Tensor, Tensor]:
    """The hidden state above `selected` blocks, and that above all; the others are not kept."""
    selected_IPV = hidden_IPV
    for i, block in enumerate(blocks, start=1):
        hidden_IPV = block(hidden_IPV)
        selected_IPV = hidden_IPV if i == selected else selected_IPV
    return selected_IPV, hidden_IPV
