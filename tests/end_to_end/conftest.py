"""One short training for the whole folder: the quickstart's recipe with fewer steps."""

import importlib
import os
import shutil
from pathlib import Path

import pytest

from vlmkit.data.formats import DATA_FORMATS
from vlmkit.recipe import load_recipe

ROOT = Path(__file__).parents[2]
SHORT = [
    "stages.contrastive.steps=160",
    "stages.vqa.steps=260",
    "stages.vqa.warmup=60",
    "evaluate.data.limit=300",
]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A user's folder after `vlmkit train`: runs/quickstart, gallery/ with 300 test images, recipes/."""
    from vlmkit.assemble import check_blocks
    from vlmkit.train.run import train_recipe

    home = tmp_path_factory.mktemp("home")
    recipe = load_recipe(
        ROOT / "recipes/quickstart.yaml", [*SHORT, f"output={home}/runs/quickstart"], check_blocks
    )
    train_recipe(recipe)
    (home / "recipes").symlink_to(ROOT / "recipes")
    gallery = home / "gallery"
    gallery.mkdir()
    for sample in DATA_FORMATS["easy_vqa"](split="test", limit=300):
        shutil.copy2(sample.images[0], gallery / sample.images[0].name)
    return home


@pytest.fixture
def in_home(home, monkeypatch):
    """Stand in the user's folder."""
    monkeypatch.chdir(home)
    # Where "." is on the path, Python has kept the folder that it was before.
    importlib.invalidate_caches()
    return home


@pytest.fixture
def cli(capfd, in_home):
    """Run a command in the user's folder: (exit code, stdout, stderr)."""
    from vlmkit.cli import main

    def run(*argv):
        before = dict(os.environ)
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        os.environ.clear()
        os.environ.update(before)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def index(home):
    """indexes/quickstart over the gallery."""
    from vlmkit import load_encoder
    from vlmkit_retrieval import Index

    run = home / "runs/quickstart"
    with Index.create_or_open(home / "indexes/quickstart") as made:
        made.sync([home / "gallery"], load_encoder(run), reference=str(run))
    return home / "indexes/quickstart"
