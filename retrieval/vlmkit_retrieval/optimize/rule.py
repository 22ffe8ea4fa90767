"""When exact search stops paying: a rule of thumb, stated; nothing is ever built by itself.

An exact search of our engine takes about 0.2 ns of CPU a stored number, on a busy machine twice that. From
256 million numbers of a space on, 330,000 vectors of 768 or 660,000 of 384, a search takes 50 ms; then it is
worth measuring what a graph would do.
"""

from __future__ import annotations

from vlmkit_retrieval.engines.built import Built
from vlmkit_retrieval.engines.edge import EdgeEngine
from vlmkit_retrieval.types import Dense, Engine
from vlmkit_retrieval.where import HasVector

NUMBERS = 256_000_000
_NANOSECONDS = 0.2


def built_of(engine: Engine) -> Built:
    """What an engine has beside exact search, and what was measured of it; nothing of other engines."""
    return engine.built if isinstance(engine, EdgeEngine) else Built()


def advice(engine: Engine) -> str | None:
    """A line that names the spaces which are searched exactly and are large; None where there is none."""
    if not isinstance(engine, EdgeEngine):
        return None
    widths = {name: space.width for name, space in engine.spaces().items() if isinstance(space, Dense)}
    large = [
        f"{name} ({items:,} x {width}, about {items * width * _NANOSECONDS / 1e6:.0f} ms)"
        for name, width in widths.items()
        if name not in engine.settings and (items := _items(engine, name, width)) * width >= NUMBERS
    ]
    if not large:
        return None
    return (
        f"exact search of {', '.join(large)} takes long: `vlmkit index optimize INDEX` builds an approximate "
        "index on a copy, measures what it finds and costs, and asks"
    )


def _items(engine: EdgeEngine, name: str, width: int) -> int:
    """Items with a vector in a space; where even all of them were too few, that number."""
    items = engine.count()
    return engine.count(HasVector(name)) if items * width >= NUMBERS else items
