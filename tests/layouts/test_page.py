"""The table of docs/layouts.md: every layout, and the tokens that the code counts."""

import re
from pathlib import Path

from vlmkit.encoders.spec import VisionSpec
from vlmkit.layouts import LAYOUTS
from vlmkit.splice import Marks, count_tokens
from vlmkit_connectors import MLPConnector

PAGE = Path(__file__).parents[2] / "docs/layouts.md"
SIZES = [(640, 480), (1920, 1080), (1700, 2200), (64, 64)]


def counted(layout):
    spec = VisionSpec(336, 14, 1024, layout=layout, max_patches=576)
    connector = MLPConnector([spec.feature_width], 64)
    return [count_tokens([spec], connector, Marks(), (*size, 0)) for size in SIZES]


def test_the_table_is_what_the_code_counts():
    header, rows = re.search(
        r"^(\| layout \| what.*?\n)\|[- |]+\n((?:\|.*\n)+)", PAGE.read_text(), re.M
    ).groups()
    assert header.split("|")[4:-1] == [f" {width}x{height} " for width, height in SIZES]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()]
    table = {name.strip("`"): [int(count) for count in counts] for name, _, _, *counts in cells}
    assert table == {name: counted(name) for name in LAYOUTS}
