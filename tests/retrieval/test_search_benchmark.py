"""The benchmark of search runs, on a few points; its ratios and its right answers are what they should be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vlmkit_retrieval

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_compares_two_sides(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(vlmkit_retrieval.__file__).parents[1]))
    words = [
        "--points",
        "200",
        "--sides",
        "vlmkit",
        "local mode",
        "--modes",
        "--output",
        tmp_path / "table.md",
    ]
    command = [sys.executable, BENCHMARKS / "search.py", "--work", tmp_path, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text()
    [ours] = [line for line in table.splitlines() if line.startswith("| vlmkit | 1.0000")]
    assert ours.startswith("| vlmkit | 1.0000, 1.0000, 1.0000 |"), "exact search finds all neighbours"
    assert "| ingest | 8x less CPU |" in table and "| reopen | under 3 s |" in table


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import search_data
    import search_report

    return search_data, search_report


def test_its_arithmetic(modules, tmp_path):
    data, report = modules
    data.write("clustered", tmp_path, 300)
    stored = np.concatenate([rows for _, rows in data.blocks(tmp_path, "clustered", 300)])
    assert stored.shape == (300, 768)
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1.0, atol=1e-5)
    allowed = data.allowed("half", 300)
    assert (allowed.mean(), data.allowed("tenant", 300).sum()) == (200 / 300, 3)
    right = data.truth(tmp_path, "clustered", 300, "half")
    best = (data.queries(tmp_path, "clustered")[0] @ stored.T)[allowed].max()
    assert allowed[right].all() and np.isclose(
        data.queries(tmp_path, "clustered")[0] @ stored[right[0, 0]], best
    )
    rows = {"vlmkit": {"fill_cpu": 0.5}, "local mode": {"fill_cpu": 6.0}}
    assert report.ratio(rows, "vlmkit", "fill") == 12.0
