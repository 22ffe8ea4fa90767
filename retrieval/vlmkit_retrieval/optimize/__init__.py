"""A graph (HNSW) and compressed vectors for large indexes: built elsewhere, measured, then swapped in."""

from vlmkit_retrieval.optimize.modes import Mode
from vlmkit_retrieval.optimize.report import OptimizeReport, SpaceReport, Trial
from vlmkit_retrieval.optimize.rule import advice, built_of
from vlmkit_retrieval.optimize.run import Demands, optimize

__all__ = ["Demands", "Mode", "OptimizeReport", "SpaceReport", "Trial", "advice", "built_of", "optimize"]
