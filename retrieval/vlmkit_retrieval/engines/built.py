"""What was built for a shard beside exact search, and what was measured: a small file in the shard itself.

So one rename of the shard's directory brings graph, compressed vectors and this file, or none of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.json_file import write_json

BUILT = "vlmkit-optimized.json"
SCHEMA = 1


@dataclass(frozen=True)
class Setting:
    """How an approximate search goes about it.

    Attributes:
        ef: How many candidates a search of the graph keeps; None where there is no graph.
        oversampling: How many times k are compared again by their full vectors; None where nothing is
            compressed.
    """

    ef: int | None = None
    oversampling: float | None = None

    def params(self, edge: Any) -> dict[str, Any]:
        """Arguments of the library's `SearchParams`."""
        again = edge.QuantizationSearchParams(rescore=True, oversampling=self.oversampling)
        return {"hnsw_ef": self.ef, "quantization": None if self.oversampling is None else again}


@dataclass(frozen=True)
class Figures:
    """What one way of searching does on the index's own data, measured in a process of its own.

    Attributes:
        recall: Mean share of the exact neighbours that were found.
        recall_low: Lower end of its 95 % interval.
        cpu_p50_ms: CPU time of a search, all threads.
        cpu_p95_ms: The same, of the slow ones.
        wall_p50_ms: Time on the clock.
        wall_p95_ms: The same, of the slow ones.
        memory_bytes: What the process holds in memory for it after all searches; None where the system
            does not tell.
        disk_bytes: What the shard takes on the disk.
    """

    recall: float
    recall_low: float
    cpu_p50_ms: float
    cpu_p95_ms: float
    wall_p50_ms: float
    wall_p95_ms: float
    memory_bytes: int | None
    disk_bytes: int


@dataclass(frozen=True)
class BuiltSpace:
    """One space that has more than exact search.

    Attributes:
        mode: `hnsw`, `int8`, `turboquant`, or `hnsw+int8`, `hnsw+turboquant`.
        setting: How it is searched.
        items: Items that had a vector in the space at that time.
        k: How many neighbours a query asked for.
        queries: How many queries were measured.
        figures: By this setting.
        exact: By exact search, on the same data and queries.
    """

    mode: str
    setting: Setting
    items: int
    k: int
    queries: int
    figures: Figures
    exact: Figures


@dataclass(frozen=True)
class Built:
    """By space, and when (ISO 8601)."""

    made: str = ""
    spaces: Mapping[str, BuiltSpace] = field(default_factory=dict)

    def save(self, shard: Path) -> None:
        """Replace the file in one step."""
        write_json(shard / BUILT, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, shard: Path) -> Built:
        """What a shard has; nothing where there is no such file.

        Raises:
            RetrievalError: The file is damaged or of a newer version.
        """
        path = shard / BUILT
        try:
            stored = json.loads(path.read_text("utf-8"))
            if stored["schema"] != SCHEMA:
                raise RetrievalError(
                    f"{path} has schema {stored['schema']}, this vlmkit reads {SCHEMA}; update it"
                )
            return cls(stored["made"], {name: _space(own) for name, own in stored["spaces"].items()})
        except FileNotFoundError:
            return cls()
        except RetrievalError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RetrievalError(
                f"{path} is damaged ({error!r}); delete it to search exactly, and optimize again"
            ) from error


def _space(stored: dict[str, Any]) -> BuiltSpace:
    figures = {key: Figures(**stored[key]) for key in ("figures", "exact")}
    return BuiltSpace(**{**stored, **figures, "setting": Setting(**stored["setting"])})
