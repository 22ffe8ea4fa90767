"""A tiny recipe in a file, and processes that stand in for training where only the sweep is looked at."""

import json
import sys

import pytest
import yaml

PARTS = {part: {"lr": 1e-3} for part in ("encoder", "connector", "llm")}
RECIPE = {
    "name": "swept",
    "seed": 3,
    "precision": "fp32",
    "model": {
        "encoders": [{"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}],
        "connector": {"type": "mlp", "depth": 1, "pool": 2},
        "llm": {
            "type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 128,
        },
    },
    "stages": [
        {
            "name": "first", "data": {"type": "easy_vqa", "limit": 20}, "train": PARTS, "steps": 1,
            "batch_size": 2,
        },
        {
            "name": "last", "data": {"type": "easy_vqa", "limit": 20}, "train": PARTS, "steps": 80,
            "batch_size": 4,
        },
    ],
    "evaluate": {"data": {"type": "easy_vqa", "split": "test", "limit": 2}, "max_new_tokens": 2},
}  # fmt: skip
# What stands in for `vlmkit train`: it takes a while, or dies, or leaves the run that is its template behind,
# with the score that it is told. Those that meet in a folder wait for each other and let no more in.
STAND_IN = """
import json, os, shutil, sys, time
template, run, manifest, does = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
held = b"x" * does.get("bytes", 0)
if "meet" in does:
    folder, count = does["meet"]
    own = os.path.join(folder, os.path.basename(run))
    if sum(not name.endswith(".ended") for name in os.listdir(folder)) >= count:
        sys.exit("more at once than asked")
    open(own, "w").close()
    while len(os.listdir(folder)) < count:
        time.sleep(0.02)
time.sleep(does.get("sleep", 0))
if "signal" in does:
    os.kill(os.getpid(), does["signal"])
if "says" in does:
    sys.exit(does["says"])
if not os.path.exists(run):
    shutil.copytree(template, run)
manifest["report"]["exact_match"]["all"] = does.get("score", 0.5)
with open(run + "/vlmkit.json", "w") as file:
    json.dump(manifest, file)
if "meet" in does:
    os.rename(own, own + ".ended")
"""


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "swept.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


@pytest.fixture(scope="session")
def template(recipe_file, tmp_path_factory):
    """What a run leaves behind that a sweep reads: the model and its metrics."""
    from vlmkit.assemble import assemble
    from vlmkit.recipe import load_recipe
    from vlmkit.train.run import save_model

    run = tmp_path_factory.mktemp("template") / "run"
    run.mkdir()
    save_model(assemble(load_recipe(recipe_file)), run)
    steps = [("first", 4, 9.0), ("last", 4, 0.5), ("last", 6, 1.5)]
    rows = [{"stage": name, "step": 1, "images": i, "seconds": s} for name, i, s in steps]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def stand_in(monkeypatch, template):
    """A function: what the process of each job does, by name, instead of training."""

    def behave(**does):
        def command(place, job, recipe):
            dumped = job.recipe.model_dump(mode="json")
            report = {"exact_match": {"all": 0.0, "shape": 0.25}, "blind": {"all": 0.125}}
            manifest = {"finished": True, "report": report, "recipe": dumped}
            told = json.dumps(does.get(job.name, {}))
            run = place.run(job)
            run.parent.mkdir(parents=True, exist_ok=True)
            return [sys.executable, "-c", STAND_IN, template, str(run), json.dumps(manifest), told]

        monkeypatch.setattr("vlmkit.sweep.process.command", command)

    return behave


@pytest.fixture
def started():
    """A function: a sweep's folder to the names of the processes that were started, in order."""

    def read(folder):
        lines = (folder / "started.jsonl").read_text().splitlines()
        return [json.loads(line)["started"] for line in lines]

    return read
