"""What can be built for a dense space, and by which settings it may then be searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vlmkit_retrieval.engines.built import Setting
from vlmkit_retrieval.errors import RetrievalUsageError

Compression = Literal["int8", "turboquant"]
_GRAPH = "hnsw"
# Candidates that a search of the graph keeps. More find more, and take longer; nothing is built anew for it.
EFS = (64, 128, 256, 512)
# How many times k the compressed vectors choose, to be compared again by their full ones.
AGAIN = (1.0, 2.0, 4.0)
# With a graph as well; the choice of ef already says how far the search goes.
AGAIN_OF_GRAPH = 2.0


@dataclass(frozen=True)
class Mode:
    """What is built beside the vectors, which stay as they are.

    Attributes:
        graph: HNSW (Malkov and Yashunin, 2018, https://arxiv.org/abs/1603.09320): a search visits some
            items, not all.
        compression: Vectors of 8 bits a number (`int8`), or of 4 after a rotation (`turboquant`; Zandieh et
            al., 2025, https://arxiv.org/abs/2504.19874), are compared first; the best of them again by their
            full vectors, which then need not be in memory.

    Raises:
        RetrievalUsageError: Neither, or an unknown compression.
    """

    graph: bool = True
    compression: Compression | None = None

    def __post_init__(self) -> None:
        if self.compression not in (None, *get_args(Compression)):
            possible = ", ".join(get_args(Compression))
            raise RetrievalUsageError(f"compression is {self.compression!r}; possible: {possible}")
        if not self.graph and self.compression is None:
            raise RetrievalUsageError(
                "nothing to build: name a graph, a compression (int8, turboquant), or both"
            )

    @property
    def name(self) -> str:
        """`hnsw`, `int8`, `hnsw+int8` and so on."""
        return "+".join(part for part in (_GRAPH * self.graph, self.compression) if part)

    @classmethod
    def parse(cls, name: str) -> Mode:
        """The mode of a `name`.

        Raises:
            RetrievalUsageError: There is none.
        """
        for mode in MODES:
            if mode.name == name:
                return mode
        raise RetrievalUsageError(f"no mode {name!r}; possible: {', '.join(mode.name for mode in MODES)}")

    def settings(self) -> tuple[Setting, ...]:
        """Ways to search by it, each to be measured; faster ones first."""
        if not self.graph:
            return tuple(Setting(None, times) for times in AGAIN)
        return tuple(Setting(ef, AGAIN_OF_GRAPH if self.compression else None) for ef in EFS)


MODES = (
    Mode(),
    Mode(False, "int8"),
    Mode(False, "turboquant"),
    Mode(True, "int8"),
    Mode(True, "turboquant"),
)
