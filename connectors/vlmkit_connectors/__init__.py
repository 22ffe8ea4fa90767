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
from vlmkit_connectors.gated_cross_attention import GatedCrossAttention
from vlmkit_connectors.mllama import MllamaCrossAttention
from vlmkit_connectors.mlp import MLPConnector
from vlmkit_connectors.perceiver import PerceiverConnector, PerceiverResampler
from vlmkit_connectors.qformer import QFormerConnector

CONNECTORS: dict[str, type[Connector]] = {
    "gated_cross_attention": GatedCrossAttention,
    "mllama": MllamaCrossAttention,
    "mlp": MLPConnector,
    "perceiver": PerceiverConnector,
    "qformer": QFormerConnector,
}

__all__ = [
    "CONNECTORS",
    "Connector",
    "GatedCrossAttention",
    "Grid",
    "Groups",
    "ImageTokens",
    "InjectedBlock",
    "Interleaved",
    "LayerInjection",
    "MLPConnector",
    "MllamaCrossAttention",
    "PerceiverConnector",
    "PerceiverResampler",
    "QFormerConnector",
    "Questions",
    "VisionFeatures",
    "concat_encoders",
]
