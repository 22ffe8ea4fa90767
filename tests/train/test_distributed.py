"""Several processes: the gradients of one, checkpoints for any number, and nobody waits for ever."""

import json
import math
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vlmkit.checkpoint import read_run
from vlmkit.recipe import load_recipe
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.metrics import read_metrics
from vlmkit.train.run import train_recipe
from vlmkit.vlm import VLM

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Only what hangs takes so long.
SECONDS = 900
PARTS = {part: {"lr": 1e-3} for part in ("encoder", "connector", "llm")}
STAGE = {"train": PARTS, "warmup": 0, "schedule": "constant", "clip": 1e9, "batch_size": 8, "steps": 1}
# A retrieval head and a last layer that the next token never asks for.
ENCODER = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
UNREACHED = {"embed_dim": 8, "layer": -2, "text_tower": "words"}
CLIPPED = {"clip": 1e-3}
# All images are in one of two processes: its loss over them is that of one process.
BOTH = {"objective": {"next_token": 1.0, "contrastive": 0.2}}


def environment(**more):
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "connectors", "retrieval"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


def together(commands, environments, seconds=SECONDS):
    """Run commands at once, for so many seconds at most; returns (exit code, output) of each."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen(c, env=e, start_new_session=True, **piped)
        for c, e in zip(commands, environments, strict=True)
    ]
    end = time.monotonic() + seconds
    try:
        said = [process.communicate(timeout=max(1, end - time.monotonic()))[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def in_processes(jobs, folder, count=2):
    """Run jobs of processes.py in that many processes that talk by gloo."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": str(count)} for r in range(count)]
    own = [environment(**where, **rank) for rank in ranks]
    command = [sys.executable, str(HERE / "processes.py"), str(file), str(folder)]
    for code, text in together([command] * count, own):
        assert code == 0, text[-3000:]


def alone(jobs, folder):
    """Run jobs in this process."""
    before = dict(os.environ)
    run_job = runpy.run_path(str(HERE / "processes.py"))["run_job"]
    try:
        for job in jobs:
            run_job(job["recipe"], job, folder)
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def folder(tiny_recipe, tmp_path_factory):
    """What one process, and two, left of the same stages; FSDP and DDP in the same two processes."""
    folder = tmp_path_factory.mktemp("processes")

    def job(name, resume=None, sharded=False, connector="mlp", **stage):
        options = {} if connector == "mlp" else {"type": connector, "pool": None}
        recipe = tiny_recipe(
            encoder={**ENCODER, **UNREACHED},
            connector=options,
            llm_options={"tie_word_embeddings": True},
            stages=[STAGE],
        ).model_dump(mode="json")
        if connector != "mlp":
            recipe["model"]["connector"] = {"type": connector, "heads": 2}
        made = {"name": name, "recipe": recipe, "sharded": sharded, "stage": stage}
        return made | ({"resume": str(folder / resume)} if resume else {})

    def guarded(name, **options):
        """The first of two steps has samples that are no numbers, one in each of two processes."""
        more = {"poison": ["image2", "text3"], "fewest": 4}
        steps = {"steps": 2, "batch_size": 4, "on_non_finite": "skip", "probe_every": 1}
        return {**job(name, **steps, **options), **more}

    first, two = "only-step-000001", {"steps": 2, "checkpoint_every": 1}
    alone(
        [
            *[job(f"1x{m}", micro_batch_size=m) for m in (8, 4, 2, 1)],
            job("packed", pack="prefix"),
            job("filled", pack="prefix", pack_length=200),
            job("five", batch_size=5),
            job("both", **BOTH),
            job("blocks", connector="gated_cross_attention"),
            job("long", **two),
            guarded("guarded"),
            {**guarded("steep"), "gradient": True},
            {**job("mixed", **CLIPPED), "mixed": True},
        ],
        folder,
    )
    in_processes(
        [
            *[job(f"2x{m}", micro_batch_size=m) for m in (4, 2, 1)],
            job("2xpacked", micro_batch_size=2, pack="prefix"),
            job("2xfilled", micro_batch_size=2, pack="prefix", pack_length=200),
            job("2xfive", batch_size=5, micro_batch_size=1),
            job("2xboth", **BOTH),
            job("2xlong", f"long/checkpoints/{first}", **two),
            {**job("stopped", steps=3), "stop": True},
            guarded("2xguarded", micro_batch_size=1),
            {**guarded("2xsteep", micro_batch_size=1), "gradient": True},
            {**job("2xmixed", micro_batch_size=2, **CLIPPED), "mixed": True},
            guarded("fsdpguarded", sharded=True, micro_batch_size=2),
            {**guarded("fsdpsteep", sharded=True, micro_batch_size=2), "gradient": True},
            {**job("fsdpmixed", sharded=True, micro_batch_size=1, **CLIPPED), "mixed": True},
            *[job(f"fsdp{m}", sharded=True, micro_batch_size=m) for m in (4, 1)],
            job("fsdppacked", sharded=True, pack="prefix"),
            job("fsdpfilled", sharded=True, pack_length=200),
            job("fsdpfive", sharded=True, batch_size=5, micro_batch_size=1),
            job("fsdpboth", sharded=True, **BOTH),
            job("fsdpblocks", sharded=True, connector="gated_cross_attention", micro_batch_size=2),
            job("fsdplong", f"long/checkpoints/{first}", sharded=True, **two),
            job("fsdpshort", sharded=True, **two),
            {**job("old", sharded=True), "version": "1"},
        ],
        folder,
    )
    alone([job("back", f"fsdpshort/checkpoints/{first}", **two)], folder)
    return folder


def gap(one, other):
    """Largest difference of two files of gradients, and their largest gradient."""
    mine, theirs = load_file(one / "gradients.safetensors"), load_file(other / "gradients.safetensors")
    assert mine.keys() == theirs.keys() and len(mine) > 20
    return max(float((mine[n] - theirs[n]).abs().max()) for n in mine)


SPLITS = [
    *[("1x8", name) for name in ("1x4", "1x2", "1x1", "2x4", "2x2", "2x1", "fsdp4", "fsdp1")],
    ("packed", "2xpacked"),
    ("packed", "fsdppacked"),
    ("packed", "1x8"),
    *[("packed", name) for name in ("filled", "2xfilled", "fsdpfilled")],
    ("five", "2xfive"),
    ("five", "fsdpfive"),
    ("blocks", "fsdpblocks"),
    ("both", "2xboth"),
    ("both", "fsdpboth"),
]


@pytest.mark.parametrize("one, other", SPLITS)
def test_any_split_of_a_step_gives_the_same_gradients(folder, one, other):
    """Rows differ in supervised tokens and some have no image; of two processes one has text alone."""
    assert gap(folder / one, folder / other) <= 1e-6


def test_other_batches_give_other_gradients(folder):
    """The bar above tells a step from another one."""
    assert gap(folder / "1x8", folder / "long") > 1e-3


@pytest.mark.parametrize("one, other", [("long", "2xlong"), ("long", "fsdplong"), ("long", "back")])
def test_a_run_goes_on_with_another_number_of_processes(folder, one, other):
    """The second step, from a checkpoint of 1 process in 2 and the other way round, with AdamW's state."""
    assert gap(folder / one, folder / other) <= 1e-6
    states = [
        torch.load(latest_checkpoint(folder / name, "only") / "optimizer.pt", weights_only=True)["state"]
        for name in (one, other)
    ]
    assert states[0].keys() == states[1].keys() and states[0][0]["step"] == states[1][0]["step"] == 2
    for number, mine in states[0].items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert float((mine[name] - states[1][number][name]).abs().max()) <= 1e-6


def test_checkpoints_of_shares_are_whole(folder):
    """One process reads them as its own, and the model that the shares were cut from holds their numbers."""
    mine, theirs = (
        load_file(latest_checkpoint(folder / n, "only") / "trained.safetensors") for n in ("1x8", "fsdp4")
    )
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    after = load_file(folder / "fsdp4" / "after.safetensors")
    assert after and all(torch.equal(after[n], theirs[n]) for n in after)
    random = torch.load(latest_checkpoint(folder / "fsdp4", "only") / "random.pt", weights_only=True)
    assert len(random) == 2


@pytest.mark.parametrize("other", ["2xmixed", "fsdpmixed"])
def test_processes_tell_together_what_one_tells(folder, other):
    """Of two processes either may have no row of a source; norms of shares are those of the whole."""
    (mine,), (theirs,) = (read_metrics(folder / name / "metrics.jsonl") for name in ("mixed", other))
    assert set(mine["source_loss"]) == {"images", "texts"}
    assert set(mine["grad_norms"]) == {"encoder", "connector", "llm"}
    for name in ("source_loss", "grad_norms", "loss", "tokens", "images"):
        assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    # Clipping comes behind it.
    assert math.hypot(*theirs["grad_norms"].values()) == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert theirs["grad_norm"] > 1e-2


def test_a_signal_to_one_process_stops_all_after_the_same_step(folder):
    """The second process alone got it; the first one writes the checkpoint."""
    assert latest_checkpoint(folder / "stopped", "only").name == "only-step-000001"
    assert len(read_metrics(folder / "stopped" / "metrics.jsonl")) == 1


@pytest.mark.parametrize("name", ["2xguarded", "fsdpguarded"])
def test_a_step_that_is_not_finite_is_left_out_in_all_processes_and_names_samples_of_all(folder, name):
    """The step after it has the gradients of one process, and a probe's losses are those of one."""
    one, other = folder / "guarded", folder / name
    listed = [read_metrics(path / "non_finite.jsonl") for path in (one, other)]
    assert {row["id"] for row in listed[1]} == {"image2", "text3"} and len(listed[0]) == len(listed[1]) == 2
    assert {(row["step"], row["kind"]) for found in listed for row in found} == {(1, "loss")}
    assert gap(one, other) <= 1e-6
    mine, theirs = (read_metrics(path / "metrics.jsonl") for path in (one, other))
    assert [row["non_finite"] for row in theirs] == [1, 0] and theirs[0]["loss"] is None
    assert abs(mine[0]["probe/true"] - mine[0]["probe/shuffled"]) > 1e-3
    for version in ("true", "shuffled", "blank"):
        assert theirs[0][f"probe/{version}"] == pytest.approx(mine[0][f"probe/{version}"], abs=1e-5)


@pytest.mark.parametrize("name", ["2xsteep", "fsdpsteep"])
def test_a_gradient_that_is_not_finite_is_left_out_in_all_processes(folder, name):
    """Its loss is; of shares nobody can say which sample it was, and all of the step are named."""
    one, other = folder / "steep", folder / name
    mine, theirs = (read_metrics(path / "metrics.jsonl") for path in (one, other))
    assert [row["non_finite"] for row in mine] == [row["non_finite"] for row in theirs] == [1, 0]
    assert theirs[0]["grad_norm"] is None
    assert theirs[0]["loss"] == pytest.approx(mine[0]["loss"], rel=1e-5)
    assert gap(one, other) <= 1e-6
    for path, kind in ((one, "gradient"), (other, "step" if "fsdp" in name else "gradient")):
        rows = read_metrics(path / "non_finite.jsonl")
        assert {(row["step"], row["kind"]) for row in rows} == {(1, kind)}
        assert {"image2", "text3"} <= {row["id"] for row in rows}
        assert (len(rows) == 2) is (kind == "gradient")


def test_the_first_version_of_fsdp_is_refused(folder):
    assert "set fsdp_version: 2" in (folder / "old" / "refused.txt").read_text()


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory):
    """Two stages, the second with LoRA, and an evaluation."""
    data = tiny_recipe().stages[0].data.model_dump(mode="json")
    recipe = tiny_recipe(
        encoder={**ENCODER, "embed_dim": 8},
        stages=[
            {**STAGE, "name": "all", "steps": 2, "batch_size": 3, "micro_batch_size": 1},
            {"name": "adapters", "train": {"llm": {"lr": 1e-3, "lora": {"r": 2}}}, "pack": "prefix"},
        ],
        evaluate={"data": {**data, "limit": 2}, "blind": False, "max_new_tokens": 2},
    )
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    return file


def launch(recipe_file, run, *options):
    """`accelerate launch ... -m vlmkit train`; returns what all processes said."""
    told = ["--num_processes", "2", "--main_process_port", free_port(), *options]
    command = [sys.executable, "-m", "accelerate.commands.launch", *told, "-m", "vlmkit", "train"]
    ((code, text),) = together([[*command, str(recipe_file), f"output={run}", "--debug"]], [environment()])
    assert code == 0, text[-3000:]
    return text


def assert_same_run(run, other):
    """Losses, what was counted, and a whole model; not the weights: AdamW makes much of a last bit."""
    rows, others = (read_metrics(path / "metrics.jsonl") for path in (run, other))
    counts = [[(r["stage"], r["step"], r["tokens"], r["images"]) for r in found] for found in (rows, others)]
    assert counts[0] == counts[1] and len(rows) == 3
    for mine, theirs in zip(rows, others, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    manifest = read_run(run)
    assert manifest["finished"] and manifest["stages_done"] == ["all", "adapters"]
    assert manifest["report"]["questions"] == 2 and (run / "curves.png").exists()
    assert VLM.from_pretrained(run).num_parameters() == VLM.from_pretrained(other).num_parameters()


def test_the_command_line_under_accelerate_launch(recipe_file, tmp_path):
    """DDP: one voice, one writer, the numbers of one process; nothing but accelerate's options is told."""
    said = launch(recipe_file, tmp_path / "two", "--multi_gpu")
    assert said.count("stage all in float32") == 1 and said.count("The model is in") == 1
    assert_same_run(tmp_path / "two", train_recipe(load_recipe(recipe_file, [f"output={tmp_path}/one"])).path)


@pytest.mark.slow
def test_shares_under_accelerate_launch(recipe_file, tmp_path):
    """FSDP2, with a stage of LoRA after one that trains everything."""
    told = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    launch(recipe_file, tmp_path / "two", *told)
    assert_same_run(tmp_path / "two", train_recipe(load_recipe(recipe_file, [f"output={tmp_path}/one"])).path)
