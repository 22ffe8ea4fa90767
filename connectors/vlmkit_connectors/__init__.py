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
from vlmkit_connectors.c_abstractor import CAbstractorConnector
from vlmkit_connectors.fuse import Groups, Interleaved, concat_encoders
from vlmkit_connectors.gated_cross_attention import GatedCrossAttention
from vlmkit_connectors.ldp import LDPConnector
from vlmkit_connectors.linear import LinearConnector
from vlmkit_connectors.mllama import MllamaCrossAttention
from vlmkit_connectors.mlp import MLPConnector
from vlmkit_connectors.perceiver import PerceiverConnector
from vlmkit_connectors.pixel_shuffle import PixelShuffleConnector
from vlmkit_connectors.pool import PoolConnector
from vlmkit_connectors.qformer import QFormerConnector
from vlmkit_connectors.resampler import PerceiverResampler
from vlmkit_connectors.sva import SVAConnector
from vlmkit_connectors.token_merge import TokenMergeConnector

CONNECTORS: dict[str, type[Connector]] = {
    # Their tokens enter the sequence.
    "linear": LinearConnector,
    "mlp": MLPConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "pool": PoolConnector,
    "c_abstractor": CAbstractorConnector,
    "ldp": LDPConnector,
    "perceiver": PerceiverConnector,
    "qformer": QFormerConnector,
    "sva": SVAConnector,
    "token_merge": TokenMergeConnector,
    # Blocks inside the language model look at theirs.
    "gated_cross_attention": GatedCrossAttention,
    "mllama": MllamaCrossAttention,
}

__all__ = [
    "CONNECTORS",
    "CAbstractorConnector",
    "Connector",
    "GatedCrossAttention",
    "Grid",
    "Groups",
    "ImageTokens",
    "InjectedBlock",
    "Interleaved",
    "LDPConnector",
    "LayerInjection",
    "LinearConnector",
    "MLPConnector",
    "Memory",
    "MllamaCrossAttention",
    "PerceiverConnector",
    "PerceiverResampler",
    "PixelShuffleConnector",
    "PoolConnector",
    "QFormerConnector",
    "Questions",
    "SVAConnector",
    "TokenMergeConnector",
    "VisionFeatures",
    "concat_encoders",
]
