"""The tables of `search.py`."""

import platform
from importlib.metadata import PackageNotFoundError, version

LOCAL, OURS = "local mode", "vlmkit"
# What a figure is called, and its key; all are compared by CPU time with local mode.
TIMES = (
    ("ingest, us a point", "fill", 1e6),
    ("exact search, ms", "all", 1e3),
    ("filter of 1 %, ms", "tenant", 1e3),
    ("filter of 50 %, ms", "half", 1e3),
)
# (what, least ratio of CPU time to local mode, key of the figure)
BARS = (
    ("ingest", 8, "fill"),
    ("exact search", 10, "all"),
    ("keyword filter of 1 %", 100, "tenant"),
    ("keyword filter of 50 %", 100, "half"),
)
REOPEN = 3.0


def heading(points):
    """What was run, and with what."""
    names = ("qdrant-edge-py", "qdrant-client", "langchain-qdrant", "faiss-cpu", "numpy")
    versions = ", ".join(f"{name} {found}" for name in names if (found := _version(name)))
    return (
        f"# Search: {points:,} points of 768 float32\n\n"
        f"`python benchmarks/search.py`: {platform.machine()}, 1 thread where a library can be told, "
        f"{versions}. Every side in processes of its own; times are CPU / wall, of searches the medians. "
        "Ratios are of CPU time, to local mode.\n"
    )


def _version(name):
    """None where its side was left out, and it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def sides_table(rows):
    """Markdown: times with their ratios to local mode, then sizes, then the bars."""
    return f"{_times(rows)}\n\n{_sizes(rows)}\n\n{_bars(rows)}\n"


def _times(rows):
    lines = ["| side |" + "".join(f" {name} | ratio |" for name, _, _ in TIMES)]
    lines.append("|" + " --- |" * (1 + 2 * len(TIMES)))
    for side, own in rows.items():
        cells = [side]
        for _, key, scale in TIMES:
            cells.append(f"{own[f'{key}_cpu'] * scale:.4g} / {own[f'{key}_wall'] * scale:.4g}")
            cells.append(_times_less(rows, side, key))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(rows, side, key):
    """How many times less CPU than local mode; None where that was not run."""
    return rows[LOCAL][f"{key}_cpu"] / rows[side][f"{key}_cpu"] if LOCAL in rows else None


def _times_less(rows, side, key):
    found = ratio(rows, side, key)
    return "" if found is None else f"{found:.1f}x"


def _sizes(rows):
    heads = (
        "side",
        "recall@10: all, 1 %, 50 %",
        "reopen s, CPU / wall",
        "peak MB: ingest, search",
        "disk MB",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for side, own in rows.items():
        recalls = ", ".join(f"{own[f'{key}_recall']:.4f}" for key in ("all", "tenant", "half"))
        reopen = f"{own['reopen']['cpu']:.2f} / {own['reopen']['wall']:.2f}"
        peaks = ", ".join(f"{own[key] / 1e6:.0f}" for key in ("peak_fill", "peak_ask"))
        lines.append(f"| {side} | {recalls} | {reopen} | {peaks} | {own['disk'] / 1e6:.0f} |")
    return "\n".join(lines)


def _bars(rows):
    if LOCAL not in rows or OURS not in rows:
        return ""
    lines = ["| bar, vlmkit against local mode | asked | found | |", "| --- | --- | --- | --- |"]
    for what, least, key in BARS:
        found = ratio(rows, OURS, key)
        lines.append(f"| {what} | {least}x less CPU | {found:.1f}x | {_verdict(found >= least)} |")
    took = rows[OURS]["reopen"]["wall"]
    lines.append(f"| reopen | under {REOPEN:g} s | {took:.2f} s | {_verdict(took < REOPEN)} |")
    return "\n".join(lines)


def _verdict(reached):
    return "reached" if reached else "**missed**"
