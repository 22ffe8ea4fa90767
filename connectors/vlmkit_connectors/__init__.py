"""What joins vision to language: torch only, knows no encoder, no language model, no recipe."""

from __future__ import annotations

from vlmkit_connectors.base import (
    Connector,
    Grid,
    ImageTokens,
    InjectedBlock,
    LayerInjection,
    Questions,
    VisionFeatures,
)
from vlmkit_connectors.fuse import Groups, Interleaved, concat_encoders
from vlmkit_connectors.mlp import MLPConnector
from vlmkit_connectors.sva import SVAConnector

CONNECTORS: dict[str, type[Connector]] = {
    "mlp": MLPConnector,
    "sva": SVAConnector,
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
    "Questions",
    "SVAConnector",
    "VisionFeatures",
    "concat_encoders",
]
