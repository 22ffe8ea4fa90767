"""The configuration of an assembled model, stored as `config.json`: it rebuilds the model offline."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from vlmkit.encoders import encoder_class
from vlmkit.encoders.base import VisionEncoder
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import unknown_name
from vlmkit.plugins import load_class
from vlmkit_connectors import CONNECTORS, Connector


class VLMConfig(PretrainedConfig):  # type: ignore[misc]
    """What a `VLM` is made of.

    Args:
        encoders: One dictionary an encoder: `type` and the complete arguments of its constructor.
        connector: `type` and arguments of the connector.
        text_config: Configuration of the language model, as a `PretrainedConfig` or a dictionary.
        image_token_id: The placeholder that image tokens replace, N times for N tokens.
        prompt: `format`, a name from `PROMPTS`, by which questions become text.
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
    return encoder_class(described["type"])(**arguments)


def build_connector(described: dict[str, Any], vision_widths: list[int], text_width: int) -> Connector:
    """A connector with random weights; `type` is a name from `CONNECTORS` or `package.module:Class`."""
    name = described["type"]
    if name not in CONNECTORS and ":" not in name:
        raise unknown_name("connector", name, CONNECTORS)
    cls = CONNECTORS.get(name) or load_class(name, Connector)  # type: ignore[type-abstract]
    arguments = {k: v for k, v in described.items() if k != "type"}
    return cls(vision_widths=vision_widths, text_width=text_width, **arguments)


def skeleton(config: VLMConfig) -> tuple[VisionSpec, Connector]:
    """The encoder's spec and the connector on the meta device: all that counting tokens needs, no weights."""
    assert config.text_config is not None
    with torch.device("meta"):
        specs = [build_encoder(e).spec for e in config.encoders]
        connector = build_connector(
            config.connector, [s.width for s in specs], config.text_config.hidden_size
        )
    return specs[0], connector


def count_tokens(spec: VisionSpec, connector: Connector, image_size: tuple[int, int]) -> int:
    """Image tokens that an image of (width, height) pixels takes in the sequence.

    The one function that says so: the processor writes this many placeholders, the model checks against it,
    `plan` and exporters report it.
    """
    return sum(connector.num_tokens((view.rows, view.cols)) for view in spec.views(image_size))
