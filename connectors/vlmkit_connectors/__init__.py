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
from vlmkit_connectors.linear import LinearConnector
from vlmkit_connectors.mlp import MLPConnector
from vlmkit_connectors.pixel_shuffle import PixelShuffleConnector
from vlmkit_connectors.pool import PoolConnector
from vlmkit_connectors.token_merge import TokenMergeConnector

CONNECTORS: dict[str, type[Connector]] = {
    "linear": LinearConnector,
    "mlp": MLPConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "pool": PoolConnector,
    "token_merge": TokenMergeConnector,
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
    "LinearConnector",
    "MLPConnector",
    "PixelShuffleConnector",
    "PoolConnector",
    "Questions",
    "TokenMergeConnector",
    "VisionFeatures",
    "concat_encoders",
]
