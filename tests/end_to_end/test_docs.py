"""What the guides show is run: `python` and `bash` blocks in a user's folder, `yaml` blocks as recipes.

Blocks marked `sh` set a machine up or train for minutes; the suite does not run those.
"""

import re
import shlex
from pathlib import Path

import pytest

from vlmkit.assemble import check_blocks
from vlmkit.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "bash", "yaml", "sh", "text"}


def blocks(kind):
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (found, code) in enumerate(BLOCK.findall(page.read_text()))
        if found == kind
    ]


def test_every_block_says_what_it_is():
    found = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text())}
    assert found <= KINDS
    assert all(page.read_text().count("```") % 2 == 0 for page in PAGES)


@pytest.fixture
def indexes(in_home, cli, index):
    """The index that the retrieval guide makes, for the pages that use it."""
    if not (in_home / "indexes/photos").exists():
        assert cli("index", "sync", "indexes/photos", "gallery", "--encoder", "runs/quickstart")[0] == 0


@pytest.fixture
def notes(in_home):
    """The folder of texts that the retrieval guide writes, for its other blocks."""
    if not (in_home / "notes").exists():
        [code] = [p.values[0] for p in blocks("python") if 'Path("notes").mkdir' in p.values[0]]
        exec(compile(code, "block", "exec"), {"__name__": "block"})


@pytest.fixture
def judgements(in_home):
    """The judgements that the retrieval guide writes, for its other blocks."""
    if not (in_home / "gallery/qrels.tsv").exists():
        [code] = [p.values[0] for p in blocks("python") if 'write_qrels("gallery/qrels.tsv"' in p.values[0]]
        exec(compile(code, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, indexes, notes, judgements, tmp_path):
    code = code.replace("runs/taste", f"{tmp_path}/taste")
    exec(compile(code, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_run(code, indexes, notes, judgements, cli):
    for line in filter(None, code.splitlines()):
        program, *argv = shlex.split(line, comments=True)
        assert program == "vlmkit"
        code, out, err = cli(*argv)
        assert code == 0, err
        assert out.strip()


@pytest.mark.parametrize("code", blocks("yaml"))
def test_recipes_are_valid(code, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(code)
    assert load_recipe(path, check=check_blocks).stages


def test_the_readme_tree_is_true():
    tree = re.search(
        r"^```text\n(vlmkit/.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )[1]
    folder, named = None, set()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        named.add(name if not line.startswith(" ") else folder + name)
    missing = sorted(n for n in named if not (ROOT / n).exists())
    assert not missing
    rooms = {"vlmkit/", "connectors/vlmkit_connectors/", "retrieval/vlmkit_retrieval/"}
    actual = {
        room + child.name + "/" * child.is_dir()
        for room in rooms
        for child in (ROOT / room).iterdir()
        if child.name not in {"__pycache__", "__init__.py", "__main__.py", "py.typed"}
    }
    assert actual <= named, sorted(actual - named)
