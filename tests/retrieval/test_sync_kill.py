"""A sync that is killed at random moments ends, when it is run again, with the same index bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The interpreter of this process has threads of engines by now, which a fork does not take along.
PROGRAM = Path(__file__).parent / "kills.py"


def rounds(tmp_path, count, batch, seed=1):
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path, str(count), str(seed), str(batch)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_ten_kills(tmp_path):
    """Half of them in a second sync, after edits: expected is an index of the edited folder, made at once."""
    lines = rounds(tmp_path, 10, batch=1)
    assert [line[-1] for line in lines] == ["same"] * 10
    assert sum(line[-2] == "killed" for line in lines) >= 3, "too few were hit; the moments are too late"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("batch", [1, 32])
def test_a_hundred_kills(tmp_path, batch):
    lines = rounds(tmp_path, 100, batch, seed=2)
    assert [line[-1] for line in lines] == ["same"] * 100
    assert sum(line[-2] == "killed" for line in lines) >= 30


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_kills_of_a_sync_in_batches(tmp_path):
    assert [line[-1] for line in rounds(tmp_path, 3, batch=5)] == ["same"] * 3
