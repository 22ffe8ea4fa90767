"""What was measured of a copy before anything changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlmkit_retrieval.engines.built import Built, BuiltSpace, Figures, Setting


@dataclass(frozen=True)
class Trial:
    """One setting of what was built, and what it does."""

    setting: Setting
    figures: Figures


@dataclass(frozen=True)
class SpaceReport:
    """One space: exact search, and all settings of what was built for it.

    Attributes:
        name: Of the space.
        mode: What was built.
        items: Items with a vector in it.
        k: How many neighbours a query asked for.
        queries: How many there were.
        exact: Of exact search.
        trials: Of each setting.
        chosen: The first setting, from fast to slow, that finds enough; None where none does.
    """

    name: str
    mode: str
    items: int
    k: int
    queries: int
    exact: Figures
    trials: tuple[Trial, ...]
    chosen: Trial | None

    @property
    def faster(self) -> float:
        """How many times less CPU the chosen setting takes than exact search; 0 where there is none."""
        if self.chosen is None:
            return 0.0
        return self.exact.cpu_p50_ms / max(self.chosen.figures.cpu_p50_ms, 1e-6)

    def built(self) -> BuiltSpace:
        """What the shard keeps of it."""
        assert self.chosen is not None
        setting, figures = self.chosen.setting, self.chosen.figures
        return BuiltSpace(self.mode, setting, self.items, self.k, self.queries, figures, self.exact)


@dataclass(frozen=True)
class OptimizeReport:
    """What a call of `optimize` found and did.

    Attributes:
        spaces: Of each space.
        min_recall: What was asked for.
        build_cpu_seconds: What building took, in its own process.
        swapped: Whether the index is another one now.
    """

    spaces: tuple[SpaceReport, ...]
    min_recall: float
    build_cpu_seconds: float
    swapped: bool = False

    @property
    def reached(self) -> bool:
        """Whether every space has a setting that finds enough."""
        return all(space.chosen is not None for space in self.spaces)

    def built(self, made: str) -> Built:
        """What the shard keeps; `made` is the time."""
        return Built(made, {space.name: space.built() for space in self.spaces})

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "reached": self.reached}


def choose(trials: tuple[Trial, ...], min_recall: float) -> Trial | None:
    """The first that finds enough; they are in order of cost, which times on a busy machine are not."""
    return next((trial for trial in trials if trial.figures.recall >= min_recall), None)
