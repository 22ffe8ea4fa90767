"""The configuration of an assembled model, stored as `config.json`: it rebuilds the model offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from vlmkit.encoders import encoder_class
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, unknown_name
from vlmkit.plugins import load_class
from vlmkit_connectors import CONNECTORS, Connector, Groups, Interleaved, LayerInjection

FUSIONS = ("concat", "interleave", "groups")


class VLMConfig(PretrainedConfig):  # type: ignore[misc]
    """What a `VLM` is made of.

    Args:
        encoders: One dictionary an encoder: `type` and the complete arguments of its constructor.
        connector: `type` and arguments of the connector.
        text_config: Configuration of the language model, as a `PretrainedConfig` or a dictionary.
        image_token_id: The placeholder that image tokens replace, N times for N tokens.
        prompt: `format`, a name from `PROMPTS`, by which questions become text.
        fusion: How several encoders come together, a name from `FUSIONS`.
        image_tokens: `per_image` and `per_sample`, see `Budget`.
        splice: See `splice.Marks`; absent in models without.
    """

    model_type = "vlmkit"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        encoders: list[dict[str, Any]] | None = None,
        connector: dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        image_token_id: int | None = None,
        prompt: dict[str, Any] | None = None,
        fusion: str = "concat",
        image_tokens: dict[str, int | None] | None = None,
        splice: dict[str, bool] | None = None,
        **kwargs: Any,
    ) -> None:
        described: Any = text_config
        if isinstance(described, dict):
            described = AutoConfig.for_model(**described)
        self.encoders = encoders or []
        self.connector = connector or {}
        self.text_config = described
        self.image_token_id = image_token_id
        self.prompt = prompt or {"format": "chat_template"}
        self.fusion = fusion
        self.image_tokens = image_tokens or {}
        self.splice = splice or {}
        if described is not None:
            # A configuration hands its attention down to its parts: keep what the part already has.
            kwargs.setdefault("attn_implementation", described._attn_implementation)
        # The language model ties its own embeddings; the assembled model has nothing to tie.
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The language model's configuration, by which `generate` sizes its cache."""
        return self.text_config or self


def build_encoder(described: dict[str, Any]) -> VisionEncoder:
    """An encoder with random weights from its complete description in a `VLMConfig`."""
    arguments = {k: v for k, v in described.items() if k != "type"}
    encoder = encoder_class(described["type"])(**arguments)
    encoder.check_views()
    return encoder


def connector_class(name: str) -> type[Connector]:
    """The class of a connector: a name from `CONNECTORS`, or `package.module:Class`.

    Raises:
        UsageError: There is none.
    """
    if name in CONNECTORS:
        return CONNECTORS[name]
    if ":" in name:
        return load_class(name, Connector)  # type: ignore[type-abstract]
    raise unknown_name("connector", name, CONNECTORS)


def build_connector(config: VLMConfig, specs: Sequence[VisionSpec]) -> Connector | Groups:
    """The connector of a configuration with random weights, or one an encoder, as `fusion` says.

    `type` is a name from `CONNECTORS` or `package.module:Class`.

    Raises:
        UsageError: An argument does not fit, or the encoders cannot be fused so.
    """
    if config.fusion not in FUSIONS:
        raise unknown_name("fusion", config.fusion, FUSIONS)
    name = config.connector["type"]
    cls = connector_class(name)
    arguments = {k: v for k, v in config.connector.items() if k != "type"}
    arguments["text_width"] = config.get_text_config().hidden_size
    if issubclass(cls, LayerInjection):
        _check_injection(config, specs)
        arguments["text_layers"] = config.get_text_config().num_hidden_layers
    widths = [spec.feature_width for spec in specs]
    together = [widths] if config.fusion == "concat" else [[width] for width in widths]
    try:
        members = [cls(vision_widths=own, **arguments) for own in together]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.fusion == "groups" and len(specs) > 1:
        return Groups(members)
    _check_places(config, specs)
    return members[0] if len(members) == 1 else Interleaved(members)


def _check_injection(config: VLMConfig, specs: Sequence[VisionSpec]) -> None:
    """Refuse what only image tokens in the sequence can have."""
    name = config.connector["type"]
    if config.fusion != "concat" and len(specs) > 1:
        raise UsageError(
            f"connector {name!r} has one set of blocks in the language model, and fusion {config.fusion!r} a "
            "connector for each encoder; use fusion: concat"
        )
    marks = [mark for mark, wanted in config.splice.items() if wanted]
    marks += ["the layout's newline"] * any(spec.rule.newline for spec in specs)
    if marks:
        raise UsageError(
            f"{', '.join(marks)}: the tokens of {name!r} are not in the sequence, where these would "
            "be written; leave them out (newline: false in the layout)"
        )


def _check_places(config: VLMConfig, specs: Sequence[VisionSpec]) -> None:
    """Refuse to fuse features of different places."""
    for spec in specs[1:]:
        if not specs[0].agrees(spec):
            raise UsageError(
                f"fusion {config.fusion!r} joins what encoders see at the same place; found layout "
                f"{specs[0].layout!r} of {specs[0].image_size} pixels and {spec.layout!r} of "
                f"{spec.image_size}; give both the same layout (and for tiles the same image_size, for crop "
                "as much cut off), or use fusion: groups"
            )


def skeleton(config: VLMConfig) -> tuple[list[VisionSpec], Connector | Groups]:
    """The encoders' specs and the connector on the meta device: all that counting tokens needs."""
    with torch.device("meta"):
        specs = [build_encoder(e).spec for e in config.encoders]
        return specs, build_connector(config, specs)
