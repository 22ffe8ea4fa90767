"""How much memory this process holds: pages of files that it has read count, as long as they are there."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int | None:
    """Proportional set size now; None where the system does not tell it in /proc (Linux does).

    Plain resident size would count the library's vectors twice: it maps their files once to be read in order
    and once to be read at random.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
