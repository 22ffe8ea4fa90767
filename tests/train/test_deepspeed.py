"""DeepSpeed's ZeRO in two processes: the gradients and checkpoints of one; what is not sharing is refused."""

import json
import math
import runpy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vlmkit.errors import MissingExtraError, UsageError
from vlmkit.recipe import load_recipe
from vlmkit.train import zero_config
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.distribute import process_state
from vlmkit.train.intact import read_state
from vlmkit.train.metrics import read_metrics
from vlmkit.train.run import train_recipe

needed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra 'deepspeed' is not installed")
ways = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_distributed.py"))))
# Buckets that hold a few parameters: larger ones would never be sent before the last; and what DeepSpeed
# would keep whole in every process because it is small is shared, too.
SMALL = {"reduce_bucket_size": 4000, "stage3_prefetch_bucket_size": 4000}
ALL_SHARED = {"stage3_param_persistence_threshold": 0}
FIRST, TWO = "only-step-000001", {"steps": 2, "checkpoint_every": 1}
STEPS = {"steps": 2, "batch_size": 4, "on_non_finite": "skip", "probe_every": 1}
POISON = {"poison": ["image2", "text3"], "fewest": 4}
# Name: (its stage, what else the job is told); `micro` is for two processes alone.
JOBS = {
    "long": ({**TWO, "micro": 2}, {}),
    "on": (TWO, {"resume": f"long/checkpoints/{FIRST}"}),
    "filled": ({"pack": "prefix", "pack_length": 200}, {}),
    "five": ({"batch_size": 5, "micro": 1}, {}),
    "both": (ways.BOTH, {}),
    "mixed": ({**ways.CLIPPED, "micro": 1}, {"mixed": True}),
    "guarded": ({**STEPS, "micro": 1}, POISON),
    "steep": ({**STEPS, "micro": 2}, {**POISON, "gradient": True}),
    "blocks": ({"micro": 2}, {"connector": {"type": "gated_cross_attention", "heads": 2}}),
    "again": ({"gradient_checkpointing": True, "micro": 2}, {}),
    "aligned": ({**TWO, "micro": 2}, {"train": {"connector": {"lr": 1e-3}}}),
    "bf16": ({}, {"precision": "bf16"}),
}
# The others run with the slow tests.
FAST = {1: ["long", "steep"], 2: ["on", "mixed", "blocks"], 3: ["long", "guarded"]}
OTHERS = {stage: [name for name in JOBS if name not in names] for stage, names in FAST.items()} | {
    "o": ["long", "mixed", "steep", "blocks"],
    "p": ["on", "mixed", "guarded"],
}
IN_MAIN_MEMORY = {"device": "cpu"}
# By the first character of a job's name.
SHARES = {
    1: {"stage": 1, **SMALL},
    2: {"stage": 2, **SMALL},
    3: {"stage": 3, **SMALL, **ALL_SHARED},
    "o": {"stage": 2, **SMALL, "offload_optimizer": IN_MAIN_MEMORY},
    "p": {"stage": 3, **SMALL, "offload_optimizer": IN_MAIN_MEMORY, "offload_param": IN_MAIN_MEMORY},
}


@pytest.fixture(scope="module")
def job(tiny_recipe, tmp_path_factory):
    """A function: a name of `JOBS` and the stage of ZeRO (none is one process) to a job; and the folder."""
    folder = tmp_path_factory.mktemp("zero")

    def make(name, stage=None):
        own, more = JOBS[name]
        own = {key: value for key, value in own.items() if key != "micro"}
        if stage and "micro" in JOBS[name][0]:
            own["micro_batch_size"] = JOBS[name][0]["micro"]
        recipe = tiny_recipe(
            encoder={**ways.ENCODER, **ways.UNREACHED},
            llm_options={"tie_word_embeddings": True},
            stages=[{**ways.STAGE, "train": more.get("train", ways.PARTS)}],
        ).model_dump(mode="json")
        more = {key: value for key, value in more.items() if key != "train"}
        if "connector" in more:
            recipe["model"]["connector"] = more.pop("connector")
        if "resume" in more:
            more["resume"] = str(folder / more["resume"])
        made = {"name": f"{stage or ''}{name}", "recipe": recipe, "stage": own, **more}
        return made | ({"zero": {"zero_optimization": SHARES[stage]}} if stage else {})

    make.folder = folder
    return make


def resumed(job, before, name=None, stage=None, **options):
    """One process, or shares of a stage, that go on from the first step of two."""
    path = job.folder / f"{before}long" / "checkpoints" / FIRST
    return {**job("long", stage), "name": name or f"{before}back", "resume": str(path), **options}


def run(job, chosen, alone):
    ways.alone([job(name) for name in alone], job.folder)
    ways.in_processes([job(name, stage) for stage, names in chosen.items() for name in names], job.folder)
    ways.alone([resumed(job, stage) for stage, names in chosen.items() if "long" in names], job.folder)
    return job.folder


@pytest.fixture(scope="module")
def folder(job):
    """What one process, and two of ZeRO, left of the same stages."""
    return run(job, FAST, ["long", "mixed", "blocks", "guarded", "steep"])


@pytest.fixture(scope="module")
def rest(job, folder):
    run(job, OTHERS, ["five", "both", "bf16", "filled", "again", "aligned"])
    fsdp = {"sharded": True}
    ways.in_processes(
        [
            resumed(job, 3, "ddp after 3 back"),
            resumed(job, 1, "fsdp after 1 back", **fsdp),
            {**job("long"), "name": "fsdp-long", **fsdp},
        ],
        job.folder,
    )
    ways.in_processes(
        [resumed(job, "fsdp-", f"{stage} after fsdp back", stage) for stage in FAST], job.folder
    )
    return folder


# Each goes on from a checkpoint that was written in another way, with two processes on both sides.
ACROSS = ["ddp after 3 back", "fsdp after 1 back", *(f"{stage} after fsdp back" for stage in FAST)]


def each(chosen, names):
    return [f"{stage}{name}" for stage, found in chosen.items() for name in found if name in names]


def reference(folder, name):
    """What one process left of the same stage."""
    return folder / ("long" if name.endswith(("on", "back")) else name[1:])


def same_gradients(folder, name):
    """Of the last step; and the loss and the norm, from before the gradient was cut."""
    one, other = reference(folder, name), folder / name
    assert ways.gap(one, other) <= 1e-6
    mine, theirs = (read_metrics(path / "metrics.jsonl")[-1] for path in (one, other))
    assert theirs["loss"] == pytest.approx(mine["loss"], abs=2e-6)
    assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-6)


def same_weights(folder, name):
    """After the last step, of AdamW's state and of the model, where a gradient is more than a last bit."""
    paths = [latest_checkpoint(path, "only") for path in (reference(folder, name), folder / name)]
    mine, theirs = (torch.load(path / "optimizer.pt", weights_only=True)["state"] for path in paths)
    assert mine.keys() == theirs.keys() and len(mine) > 20
    for number, values in mine.items():
        assert (
            values["step"] == theirs[number]["step"] and values["step"].dtype == theirs[number]["step"].dtype
        )
        for moment in ("exp_avg", "exp_avg_sq"):
            assert float((values[moment] - theirs[number][moment]).abs().max()) <= 1e-6
    names = [name for group in read_state(paths[0])["optimizer"] for name in group]
    mine_by_name, theirs_by_name = (load_file(path / "trained.safetensors") for path in paths)
    for number, parameter in enumerate(names):
        moved = mine[number]["exp_avg_sq"].sqrt() > 1e-4 * mine[number]["exp_avg_sq"].sqrt().max().clamp(1e-3)
        difference = (mine_by_name[parameter] - theirs_by_name[parameter]).abs()[moved]
        assert moved.any() and float(difference.max()) <= 5e-6, parameter


GRADIENTS = ("long", "on", "filled", "five", "both", "guarded", "steep", "blocks", "again")


@needed
@pytest.mark.parametrize("name", [*each(FAST, GRADIENTS), "1back", "3back"])
def test_shares_have_the_gradients_of_one_process(folder, name):
    """Micro-batches, rows without images, a step left out before, and a checkpoint of another kind before.

    In blocks of cross-attention gradients come in another order where a process has no image.
    """
    same_gradients(folder, name)


@needed
@pytest.mark.parametrize("name", [*each(FAST, ("long", "on", "mixed")), "1back", "3back"])
def test_shares_have_the_weights_and_moments_of_one_process(folder, name):
    same_weights(folder, name)


@needed
@pytest.mark.slow
@pytest.mark.parametrize("name", [*each(OTHERS, GRADIENTS), "2back", "oback", *ACROSS])
def test_every_stage_has_the_gradients_of_one_process(rest, name):
    """Packed rows, rows that do not divide, two objectives, layers computed again; shares in main memory."""
    same_gradients(rest, name)


@needed
@pytest.mark.slow
@pytest.mark.parametrize("stage", FAST)
def test_a_connector_alone_trains_beside_shares_of_what_is_frozen(rest, stage):
    """The gradient goes through a language model that is frozen; so do the second step's."""
    mine, theirs = (read_metrics(rest / name / "metrics.jsonl") for name in ("aligned", f"{stage}aligned"))
    assert len(mine) == len(theirs) == 2 and set(theirs[0]["grad_norms"]) == {"connector"}
    for one, other in zip(mine, theirs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=2e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)


@needed
@pytest.mark.slow
@pytest.mark.parametrize("name", [*each(OTHERS, ("long", "on", "mixed")), "2back", *ACROSS])
def test_every_stage_has_the_weights_and_moments_of_one_process(rest, name):
    same_weights(rest, name)


@needed
@pytest.mark.slow
@pytest.mark.parametrize("stage", FAST)
def test_the_recipe_says_the_precision(rest, stage):
    """As one process rounds; gradients are in bfloat16's, which float32's are not near."""
    mine, theirs, exact = (
        read_metrics(rest / name / "metrics.jsonl")[-1] for name in ("bf16", f"{stage}bf16", "long")
    )
    assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=3e-4)
    assert ways.gap(rest / "bf16", rest / f"{stage}bf16") <= 1e-2
    assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4)
    assert theirs["loss"] != pytest.approx(exact["loss"], abs=1e-4)


@needed
@pytest.mark.parametrize("name", each(FAST, ("long",)))
def test_checkpoints_are_those_of_one_process(folder, name):
    """Of the same names, shapes and options; the model that was cut into shares holds their numbers."""
    one, other = (latest_checkpoint(folder / path, "only") for path in ("long", name))
    mine, theirs = (load_file(path / "trained.safetensors") for path in (one, other))
    assert {n: (t.shape, t.dtype) for n, t in mine.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }
    groups = [torch.load(path / "optimizer.pt", weights_only=True)["param_groups"] for path in (one, other)]
    assert groups[0] == groups[1]
    after = load_file(folder / name / "after.safetensors")
    assert after and all(torch.equal(after[n], theirs[n]) for n in after)
    assert len(torch.load(other / "random.pt", weights_only=True)) == 2


@needed
@pytest.mark.parametrize("name", each(FAST, ("mixed",)))
def test_shares_tell_what_one_process_tells(folder, name):
    """Norms of parts come before the gradient is cut, which a thousandth of it is left of."""
    (mine,), (theirs,) = (read_metrics(folder / path / "metrics.jsonl") for path in ("mixed", name))
    for told in ("source_loss", "grad_norms", "loss", "tokens", "images"):
        assert theirs[told] == pytest.approx(mine[told], rel=1e-5), told
    assert math.hypot(*theirs["grad_norms"].values()) == pytest.approx(theirs["grad_norm"], rel=1e-5)
    assert theirs["grad_norm"] > 1e-2


@needed
@pytest.mark.parametrize("name, kind", [("3guarded", "loss"), ("1steep", "step")])
def test_a_step_of_shares_that_is_not_finite_is_left_out_and_names_samples(folder, name, kind):
    """The one after it is that of one process, see the gradients above; so is the probe."""
    one, other = reference(folder, name), folder / name
    rows = read_metrics(other / "non_finite.jsonl")
    assert {"image2", "text3"} <= {row["id"] for row in rows}
    assert {(row["step"], row["kind"]) for row in rows} == {(1, kind)} and (len(rows) == 2) is (
        kind == "loss"
    )
    mine, theirs = (read_metrics(path / "metrics.jsonl") for path in (one, other))
    assert [row["non_finite"] for row in theirs] == [1, 0] and theirs[0]["grad_norm"] is None
    assert abs(mine[0]["probe/true"] - mine[0]["probe/shuffled"]) > 1e-3
    for version in ("true", "shuffled", "blank"):
        assert theirs[0][f"probe/{version}"] == pytest.approx(mine[0][f"probe/{version}"], abs=1e-5)
    state = torch.load(latest_checkpoint(other, "only") / "optimizer.pt", weights_only=True)["state"]
    assert {float(values["step"]) for values in state.values()} == {1.0}


def configured(monkeypatch, config):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", json.dumps(config))
    return zero_config.make_plugin(bf16=False).deepspeed_config


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("optimizer", {"type": "AdamW"}, "says optimizer, .* set stages.train and betas there"),
        ("scheduler", {"type": "WarmupLR"}, "set schedule and warmup"),
        ("gradient_clipping", 0.5, "set clip there"),
        ("gradient_accumulation_steps", 4, "set batch_size and micro_batch_size"),
        ("train_batch_size", 64, "set batch_size"),
        ("fp16", {"enabled": True}, "set precision"),
        ("bf16", {"enabled": True}, "set precision"),
        ("zero_optimization", {"stage": 0}, "stage 0 of ZeRO is not supported; use 1, 2, 3"),
        (
            "zero_optimization",
            {"stage": 2, "offload_optimizer": {"device": "nvme"}},
            "offload_optimizer to nvme is not",
        ),
        ("zero_optimization", {"stage": 3, "zero_quantized_weights": True}, "zero_quantized_weights is not"),
        ("zero_optimization", {"stage": 3, "compute_grad_norm": False}, "leave compute_grad_norm out"),
        ("compression_training", {}, "compression_training is not supported; its configuration may say"),
    ],
)
def test_a_configuration_says_how_the_work_is_shared_and_no_more(monkeypatch, key, value, words):
    with pytest.raises(UsageError, match=words):
        configured(monkeypatch, {"zero_optimization": {"stage": 2}, key: value})


def test_what_is_left_to_the_recipe_is_set_as_it_says(monkeypatch):
    """The usual file of others, all of it `auto`."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    open_ones = dict.fromkeys((*names, "gradient_clipping"), "auto") | {"bf16": {"enabled": "auto"}}
    sharing = {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": True}
    config = configured(monkeypatch, {**open_ones, "zero_optimization": sharing})
    assert config["gradient_accumulation_steps"] == 1 and not config["torch_autocast"]["enabled"]
    shared = config["zero_optimization"]
    assert shared["stage"] == 3 and shared["overlap_comm"] and "reduce_bucket_size" not in shared


def test_where_deepspeed_is_missing_its_extra_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(zero_config, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlmkit\[deepspeed\]'"):
        process_state()


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory):
    """Two stages, the first with a frozen encoder and the second with LoRA, and an evaluation."""
    data = tiny_recipe().stages[0].data.model_dump(mode="json")
    parts = {part: {"lr": 1e-3} for part in ("connector", "llm")}
    recipe = tiny_recipe(
        encoder={**ways.ENCODER, "embed_dim": 8},
        stages=[
            {**ways.STAGE, "train": parts, "name": "all", "steps": 2, "batch_size": 3, "micro_batch_size": 1},
            {"name": "adapters", "train": {"llm": {"lr": 1e-3, "lora": {"r": 2}}}, "pack": "prefix"},
        ],
        evaluate={"data": {**data, "limit": 2}, "blind": False, "max_new_tokens": 2},
    )
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    return file


@needed
@pytest.mark.slow
@pytest.mark.parametrize("stage", FAST)
def test_shares_of_deepspeed_under_accelerate_launch(recipe_file, tmp_path, stage):
    """One voice, one writer, the numbers of one process; nothing but accelerate's options is told."""
    said = ways.launch(recipe_file, tmp_path / "two", "--use_deepspeed", "--zero_stage", str(stage))
    assert said.count("stage all in float32") == 1 and said.count("The model is in") == 1
    one = train_recipe(load_recipe(recipe_file, [f"output={tmp_path}/one"])).path
    ways.assert_same_run(tmp_path / "two", one)
