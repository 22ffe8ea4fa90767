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
from vlmkit_connectors.c_abstractor import CAbstractorConnector
from vlmkit_connectors.fuse import Groups, Interleaved, concat_encoders
from vlmkit_connectors.ldp import LDPConnector
from vlmkit_connectors.mlp import MLPConnector

CONNECTORS: dict[str, type[Connector]] = {
    "mlp": MLPConnector,
    "c_abstractor": CAbstractorConnector,
    "ldp": LDPConnector,
}

__all__ = [
    "CONNECTORS",
    "CAbstractorConnector",
    "Connector",
    "Grid",
    "Groups",
    "ImageTokens",
    "InjectedBlock",
    "Interleaved",
    "LDPConnector",
    "LayerInjection",
    "MLPConnector",
    "Questions",
    "VisionFeatures",
    "concat_encoders",
]
