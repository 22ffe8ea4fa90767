"""kill -9 at any moment: the same losses, the same skipped samples and the same weights, bit for bit.

Two stages with dropout and a cosine schedule on a mixture of a JSON file with bad rows, a streamed table and
a tar; packed in both ways, grouped by length, with a worker; probed; logits in chunks; a sample whose loss
is no number. Each attempt is a process that dies without a handler.
"""

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vlmkit.train.metrics import read_metrics, repeatable

HERE = Path(__file__).parent
STEPS = 8
STAGE = {
    "steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "pack": "prefix", "group": "modality_length",
    "hflip": 0.5, "workers": 1, "checkpoint_every": 2, "on_bad_sample": "skip", "warmup": 2, "probe_every": 3,
}  # fmt: skip
VIT = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
WORDS = ("red", "a blue circle", "two of them", "no", "yes", "the second one")


def turns(number, asked=1):
    said = []
    for i in range(asked):
        said.append({"from": "human", "value": ("<image>" if i == 0 else "") + "what is it?"})
        said.append({"from": "gpt", "value": WORDS[(number + i) % len(WORDS)]})
    return said


def json_rows(folder, noise):
    """Twelve rows: with an image, without, of several turns; one image is broken and one is gone."""
    rows = []
    for i in range(12):
        noise(i).save(folder / f"{i}.png")
        row = {"id": f"json{i}", "image": f"{i}.png", "conversations": turns(i, 1 + i % 3)}
        if i % 4 == 3:
            row = {"id": f"text{i}", "conversations": [{**t, "value": t["value"].replace("<image>", "")}
                                                       for t in turns(i)]}  # fmt: skip
        rows.append(json.dumps(row))
    (folder / "4.png").write_bytes(b"broken")
    (folder / "5.png").unlink()
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return {"type": "llava_json", "path": str(folder / "rows.jsonl"), "image_folder": str(folder)}


def table(folder, noise):
    """A saved table of eight rows, which is read as a stream."""
    import datasets

    rows = {"conversations": [turns(i) for i in range(8)], "image": [noise(20 + i) for i in range(8)]}
    features = datasets.Features(
        {
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            "image": datasets.Image(),
        }
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(folder / "table")
    return {
        "type": "hf_dataset",
        "path": str(folder / "table"),
        "images": "image",
        "streaming": True,
        "limit": 7,
    }


def shard(folder, noise):
    """A tar of six samples."""
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for i in range(6):
            png = io.BytesIO()
            noise(40 + i).save(png, "png")
            for end, content in (("png", png.getvalue()), ("json", json.dumps(turns(i, 2)).encode())):
                member = tarfile.TarInfo(f"{i}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"type": "webdataset", "shards": str(folder / "shard.tar")}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, noise):
    folder = tmp_path_factory.mktemp("kills")
    made = {"json": json_rows, "stream": table, "tar": shard}
    sources = [
        {"name": n, "weight": 1 + (n == "json"), "data": make(folder, noise)} for n, make in made.items()
    ]
    adapters = {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2, "lora": {"r": 2, "dropout": 0.2}}}
    recipe = {
        "name": "killed",
        "precision": "fp32",
        "model": {
            "encoders": [{"type": "vit", **VIT}],
            "connector": {"type": "mlp", "pool": 2},
            "llm": {
                "type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 128, "attention_dropout": 0.1,
            },
        },
        "stages": [
            {"name": "align", "train": {"encoder": {"lr": 1e-2}, "connector": {"lr": 1e-2}}},
            {
                "name": "instruct", "train": adapters, "pack_length": 100, "on_non_finite": "skip",
            },
        ],
    }  # fmt: skip
    data = {"type": "mixture", "sources": sources}
    recipe["stages"] = [{**STAGE, **stage, "data": data} for stage in recipe["stages"]]
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.fixture(scope="module")
def attempt(recipe_file, tmp_path_factory):
    """A function: a run directory and when to kill, to exit code and seconds; nothing but that runs in it."""
    log = tmp_path_factory.mktemp("log") / "log.txt"
    root = HERE.parents[1]
    path = os.pathsep.join(str(root / folder) for folder in (".", "connectors", "retrieval"))
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(HERE / "kills.py"), str(recipe_file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **settings}, **pipes) as server:

        def start(run, **when):
            server.stdin.write(json.dumps({"output": str(run), "log": str(log), **when}) + "\n")
            server.stdin.flush()
            done = json.loads(server.stdout.readline())
            assert done["code"] in (0, -9), log.read_text()[-3000:]
            return done

        yield start
        server.kill()


@pytest.fixture(scope="module")
def whole(attempt, tmp_path_factory):
    """A run that nothing disturbed; how long it took, and how many changes of files it made."""
    run, count = (tmp_path_factory.mktemp("whole") / name for name in ("run", "count"))
    done = attempt(run, count=str(count))
    assert done["code"] == 0
    return run, done["seconds"], int(count.read_text())


def assert_equal(run, other):
    """Every line but what the machine decides, every skipped sample, every bit of model and checkpoints."""
    rows, others = ([repeatable(r) for r in read_metrics(p / "metrics.jsonl")] for p in (run, other))
    assert len(rows) == 2 * STEPS and rows == others
    skipped, theirs = ((p / "skipped.jsonl").read_text() for p in (run, other))
    assert skipped == theirs and skipped.count("image_unreadable") and skipped.count("image_missing")
    listed, theirs = ((p / "non_finite.jsonl").read_text() for p in (run, other))
    assert listed == theirs and "json/json1" in listed
    assert sum("probe/true" in row for row in rows) == 2 * (STEPS // 3), "else no probe was repeated"
    files = [f"checkpoints/{s}-step-{STEPS:06d}/trained.safetensors" for s in ("align", "instruct")]
    for file in ["model.safetensors", *files]:
        mine, theirs = (load_file(p / file) for p in (run, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), file
    names = {p.name for p in run.rglob("*")}
    assert names == {p.name for p in other.rglob("*")}, "a kill has left something behind"


def killed_at_random(attempt, whole, folder, kills, seed):
    """Runs until so many attempts were killed; returns what each had reached, and how many runs ended.

    Every other time is drawn from all the time of a run, which is mostly its start and its end; those between
    are soon after a step that is drawn.
    """
    reference, seconds, _ = whole
    draw, hits, ended = random.Random(seed), [], 0
    while len(hits) < kills:
        run = folder / f"run{ended}"
        when = {"after": draw.uniform(0, seconds)}
        if len(hits) % 2:
            rows = min(steps_of(run) + draw.randint(1, STEPS), 2 * STEPS)
            when = {"rows": rows, "after": draw.uniform(0, 0.05)}
        if attempt(run, **when)["code"] == 0:
            assert_equal(run, reference)
            ended += 1
        else:
            hits.append(state_of(run))
    last = folder / f"run{ended}"
    assert attempt(last)["code"] == 0
    assert_equal(last, reference)
    return hits, ended + 1


def steps_of(run):
    """How many steps of a killed run will not be taken again."""
    found = [p.name for p in run.glob("checkpoints/*-step-??????")]
    last = {s: max((int(n[-6:]) for n in found if n.startswith(s)), default=0) for s in ("align", "instruct")}
    return sum(last.values())


def state_of(run):
    """In words: what a killed run had reached."""
    if not (run / "metrics.jsonl").exists():
        return "before the first step"
    rows = read_metrics(run / "metrics.jsonl")
    where = f"{rows[-1]['stage']} {rows[-1]['step']}" if rows else "before the first step"
    left = sorted(p.name for p in run.rglob("*") if p.suffix in (".partial", ".old"))
    return f"{where} {left or ''}".strip()


def test_three_kills_at_random_times(attempt, whole, tmp_path):
    hits, _ = killed_at_random(attempt, whole, tmp_path, 3, seed=0)
    assert len(hits) == 3


def test_kills_at_changes_of_files_and_where_dropout_is_drawn(attempt, whole, tmp_path):
    """At the start, in the first stage, a step behind a checkpoint of the second, and again soon after."""
    reference, _, calls = whole
    run, count = tmp_path / "run", str(tmp_path / "count")
    for number in (calls // 50, calls // 3):
        assert attempt(run, at=number, count=count)["code"] == -9
    assert attempt(run, row=STEPS + 5)["code"] == -9
    assert attempt(run, at=8, count=count)["code"] == -9
    assert 0 < len(list(run.glob("checkpoints/instruct-step-*"))) < 4
    assert attempt(run)["code"] == 0
    assert_equal(run, reference)


@pytest.mark.slow
def test_twenty_kills_at_random_times(attempt, whole, tmp_path, capsys):
    hits, ended = killed_at_random(attempt, whole, tmp_path, 20, seed=int(os.environ.get("SEED", "1")))
    with capsys.disabled():
        sys.stdout.write(f"\n{ended} runs ended as the one that was not killed; killed at:\n")
        sys.stdout.write("".join(f"  {hit}\n" for hit in hits))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_kill_before_every_change_of_a_file(attempt, whole, tmp_path, capsys):
    """One run for each: killed there, then resumed to its end."""
    reference, _, calls = whole
    missed = 0
    # Backwards: what comes last, the end of a stage and of the run, is worth the most.
    for number in range(calls, 0, -1):
        run = tmp_path / f"run{number}"
        missed += attempt(run, at=number, count=str(tmp_path / "count"))["code"] == 0
        assert attempt(run)["code"] == 0
        assert_equal(run, reference)
    # A worker's sockets make some changes more or less from run to run.
    assert missed < 4
    with capsys.disabled():
        sys.stdout.write(f"\n{calls - missed} kills, one at each change of a file, and as many equal runs\n")
