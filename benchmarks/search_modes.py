"""One mode of our engine on one kind of data: what `vlmkit index optimize` measures, without the swap.

Run by `search.py`; the table's queries are drawn from the stored points, as that command draws them.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from search_data import blocks, metadata

MODES = ("hnsw", "int8", "turboquant", "hnsw+int8", "hnsw+turboquant")
HEAD = (
    "mode", "setting", "recall@10", "CPU p50 / p95 ms", "wall p50 / p95 ms", "less CPU", "memory MB",
    "disk MB", "build CPU s",
)  # fmt: skip


def measure(folder, kind, points, mode):
    """The report of one mode."""
    from vlmkit_retrieval.engines import open_engine
    from vlmkit_retrieval.optimize import Demands, Mode, optimize

    with open_engine(folder / f"modes-{kind}") as engine:
        if not engine.spaces() or engine.count() < points:
            fill(engine, folder, kind, points)
        report = optimize(engine, Mode.parse(mode), demands=Demands(), confirm=lambda report: False)
    space = report.spaces[0]
    return {"points": points, "build": report.build_cpu_seconds, **asdict(space)}


def fill(engine, folder, kind, points):
    """The same points as the side `vlmkit` has."""
    from vlmkit_retrieval.types import Dense, Point

    engine.ensure({"v": Dense(768)})
    for start, rows in blocks(folder, kind, points):
        engine.upsert([Point(str(start + n), {"v": row}, metadata(start + n)) for n, row in enumerate(rows)])


def modes_table(rows):
    """Markdown: a table a kind of data, exact search first."""
    parts = []
    for kind, modes in rows.items():
        if not modes:
            continue
        own = list(modes.values())
        parts.append(f"## Approximate search, {kind} data, {own[0]['points']:,} points\n")
        parts.append("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
        parts.append(_line("exact", "", own[0]["exact"], own[0]["exact"], ""))
        for name, found in modes.items():
            for number, trial in enumerate(found["trials"]):
                build = f"{found['build']:.0f}" if number == 0 else ""
                parts.append(_line(name, _told(trial["setting"]), trial["figures"], found["exact"], build))
        parts.append("")
    return "\n".join(parts)


def _told(setting):
    """A setting in words."""
    ef, times = setting["ef"], setting["oversampling"]
    return ", ".join(
        f"{word} {value:g}" for word, value in (("ef", ef), ("again", times)) if value is not None
    )


def _line(mode, setting, own, exact, build):
    cells = [mode, setting, f"{own['recall']:.3f}"]
    cells += [f"{own[f'{kind}_p50_ms']:.2f} / {own[f'{kind}_p95_ms']:.2f}" for kind in ("cpu", "wall")]
    cells += [f"{exact['cpu_p50_ms'] / own['cpu_p50_ms']:.1f}x", f"{(own['memory_bytes'] or 0) / 1e6:.0f}"]
    return "| " + " | ".join([*cells, f"{own['disk_bytes'] / 1e6:.0f}", build]) + " |"


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    found = measure(Path(job["folder"]), job["kind"], job["points"], job["mode"])
    Path(job["output"]).write_text(json.dumps(found))
