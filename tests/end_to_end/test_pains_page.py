"""docs/pains.md is whole, and every test that it names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pains.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| S?\d+ \|", line)
]
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", PAGE)))
REPORTED, SILENT = 33, 18


def names_in(file):
    """Names of a file's tests, `Class::name` for those of a class."""
    for node in ast.parse(file.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        yield from (prefix + found.name for found in inside if isinstance(found, ast.FunctionDef))


def test_every_line_is_there_once_and_is_whole():
    numbers = [*map(str, range(1, REPORTED + 1)), *(f"S{n}" for n in range(1, SILENT + 1))]
    assert [row[0] for row in ROWS] == numbers
    for row in ROWS:
        assert len(row) == 5 and all(row), row
        assert re.match(r"(Tested|Partly|Later|Out of scope)[:,] ", row[4]), row[4]


def test_what_is_tested_names_a_test_and_what_is_not_gives_a_reason():
    for *_, shown in ROWS:
        state, _, rest = shown.partition(":")
        if state.startswith(("Tested", "Partly")):
            assert "`tests/" in rest, shown
        words = re.sub(r"`[^`]+`", "", rest).strip(" ,.;")
        assert state.startswith("Tested") or len(words) > 5, shown


@pytest.mark.parametrize("named", NAMED)
def test_every_test_that_is_named_exists(named):
    path, _, name = named.partition("::")
    assert name.rpartition("::")[2].startswith("test_")
    assert name in names_in(ROOT / path), f"{named} is not there"


def test_the_readme_leads_there():
    assert "(docs/pains.md)" in (ROOT / "README.md").read_text()
