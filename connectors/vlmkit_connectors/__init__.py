"""What joins vision to language: torch only, knows no encoder, no language model, no recipe."""

from __future__ import annotations

from vlmkit_connectors.base import (
    Connector,
    Grid,
    ImageTokens,
    InjectedBlock,
    LayerInjection,
    Memory,
    Questions,
    VisionFeatures,
)
from vlmkit_connectors.fuse import Groups, Interleaved, concat_encoders
from vlmkit_connectors.mlp import MLPConnector

CONNECTORS: dict[str, type[Connector]] = {
    "mlp": MLPConnector,
}

__all__ = [
    "CONNECTORS",
    "Connector",
    "Grid",
    "Groups",
    "ImageTokens",
    "InjectedBlock",
    "Interleaved",
    "LayerInjection",
    "MLPConnector",
    "Memory",
    "Questions",
    "VisionFeatures",
    "concat_encoders",
]
