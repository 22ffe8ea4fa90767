"""Training steps: packing and accumulation change nothing, rates and freezing are real, bad data is named."""

import copy
import re

import pytest
import torch
from accelerate import Accelerator

from vlmkit.errors import UsageError, VlmkitError
from vlmkit.train import precision
from vlmkit.train.guard import Guard
from vlmkit.train.meters import StepMeter
from vlmkit.train.metrics import MetricsFile, Silent, read_metrics
from vlmkit.train.module import StageModule, batch_weight
from vlmkit.train.run import train_recipe
from vlmkit.train.stage import apply_stage
from vlmkit.train.stage_run import StageRun
from vlmkit.train.steps import StageData, Steps
from vlmkit.train.take_step import take_step


def mean_loss(module, batch):
    """The objectives' weighted mean, with gradients."""
    losses = module(batch)
    module.zero_grad(set_to_none=True)
    total = sum(
        module.weights[n] * loss / max(batch_weight(n, batch), 1e-9) for n, (loss, _) in losses.items()
    )
    total.backward()
    return float(total.detach())


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def largest_gap(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def weights_of(model):
    return copy.deepcopy(dict(model.named_parameters()))


@pytest.mark.parametrize("llm", ["llama", "qwen2", "gpt2", "opt", "gemma2"])
def test_packing_changes_neither_loss_nor_gradients(tiny_vlm, make_stage, samples, collate, llm):
    module = StageModule(tiny_vlm(llm), make_stage())
    plain = collate(module.vlm, samples, eos_weight=0.5)
    packed = collate(module.vlm, samples, eos_weight=0.5, pack="prefix")
    assert len(packed.sample_ids) < len(plain.sample_ids) and int(packed.branches_BL.max()) == 4
    losses = [mean_loss(module, plain)]
    unpacked = gradients(module)
    losses.append(mean_loss(module, packed))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    scale = max(float(g.abs().max()) for g in unpacked.values())
    assert largest_gap(unpacked, gradients(module)) <= 1e-6 * max(1, scale)


def test_packing_is_the_same_with_eager_attention(tiny_vlm, make_stage, samples, collate):
    model = tiny_vlm()
    packed = collate(model, samples, pack="prefix")
    found = []
    for attention in ("sdpa", "eager"):
        model.language_model.set_attn_implementation(attention)
        found.append(mean_loss(StageModule(model, make_stage()), packed))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


class Recorder:
    """An optimiser that keeps the gradients and changes nothing."""

    def __init__(self, module, stage):
        self.module = module
        self.param_groups = module.param_groups(stage)

    def step(self):
        self.seen = gradients(self.module)

    def zero_grad(self, set_to_none):
        self.module.zero_grad(set_to_none)


def step_gradients(model, stage, data, tmp_path):
    module = StageModule(model, stage)
    run = StageRun(tmp_path, Accelerator(), MetricsFile(tmp_path / "m"), Silent(), stage.clip)
    batches = Steps(stage, data, 0, 1)[0]
    recorder, meter = Recorder(module, stage), StepMeter(module, data, run.accelerator)
    return take_step(module, recorder, meter, batches, run, Guard(stage, run, 0)), recorder.seen, len(batches)


def test_micro_batches_give_the_gradients_of_the_whole_batch(
    tiny_vlm, make_stage, samples, collate, collating, tmp_path
):
    """Rows differ in length and number of supervised tokens, and some micro-batches have no image."""
    model = tiny_vlm()
    batch = collating(lambda items: collate(model, [sample for sample, _ in items]))
    data = StageData(samples, batch, seed=0)
    found = {}
    for micro in (1, 2, 4):
        stage = make_stage(batch_size=4, micro_batch_size=micro)
        values, seen, count = step_gradients(model, stage, data, tmp_path)
        assert count == 4 // micro
        found[micro] = values["loss"], seen
    scale = max(float(g.abs().max()) for g in found[4][1].values())
    for micro in (1, 2):
        assert found[micro][0] == pytest.approx(found[4][0], abs=1e-6)
        assert largest_gap(found[micro][1], found[4][1]) <= 1e-6 * max(1, scale)


def test_gradients_are_clipped_to_the_norm(tiny_vlm, make_stage, samples, collate, collating, tmp_path):
    model = tiny_vlm()
    batch = collating(lambda items: collate(model, [sample for sample, _ in items]))
    data = StageData(samples, batch, seed=0)
    values, seen, _ = step_gradients(model, make_stage(clip=0.01), data, tmp_path)
    norm = torch.stack([g.norm() for g in seen.values()]).norm()
    assert values["grad_norm"] > 0.1 and float(norm) == pytest.approx(0.01, rel=1e-3)


def test_each_share_of_a_step_is_seen_by_one_process(make_stage, samples, collating):
    stage = make_stage(batch_size=4, micro_batch_size=1)
    data = StageData(samples, collating(lambda items: [sample.id for sample, _ in items]), seed=0)
    whole = [ids for shares in [Steps(stage, data, 0, 1)[3]] for (ids,) in shares]
    halves = [ids for rank in (0, 1) for (ids,) in Steps(stage, data, rank, 2)[3]]
    assert sorted(whole) == sorted(halves) == sorted(sample.id for sample in samples)
    with pytest.raises(UsageError, match="batch_size 4 is below 5 processes"):
        Steps(stage, data, 0, 5)


@pytest.mark.parametrize("objective", ["next_token", {"next_token": 1.0, "contrastive": 0.2}, "contrastive"])
def test_a_batch_without_images_touches_what_images_would(
    two_headed, make_stage, samples, collate, objective
):
    """Otherwise the processes of a distributed step would wait for each other's gradients."""
    module = StageModule(two_headed, make_stage(objective=objective))
    captioned = [copy.copy(samples[0]), samples[2]]
    object.__setattr__(captioned[0], "captions", ("a red circle",))
    touched = {}
    for name, sample in zip(("image", "text"), captioned, strict=True):
        mean_loss(module, collate(two_headed, [sample]))
        touched[name] = gradients(module)
    assert touched["text"].keys() == touched["image"].keys()
    vision = {n: g for n, g in touched["text"].items() if ".encoders." in n or ".connector." in n}
    assert vision and all((g == 0).all() for g in vision.values())


def test_contrastive_pairs_images_with_their_own_captions(two_headed, make_stage, make_sample, collate):
    """Rows without an image or without a caption, and further images of a row, take no part."""
    cases = [
        ("red", 2, ("a red circle",)),
        ("none", 1, ()),
        ("text", 0, ("a word",)),
        ("blue", 1, ("a blue square",)),
    ]
    samples = [make_sample(n, images, ("say yes", "yes"), captions=own) for n, images, own in cases]
    module = StageModule(two_headed, make_stage(objective="contrastive"))
    mixed = collate(two_headed, samples, text=False)
    loss, weight = module(mixed)["contrastive"]
    assert float(weight) == batch_weight("contrastive", mixed) == 2
    features = two_headed.encode_images(mixed.pixel_values, mixed.image_sizes)[0]
    texts = two_headed.vision_encoder.text_tower().embed(["a red circle", "a blue square"])
    expected, _ = module.contrastive(features.pooled_BE[[0, 3]], texts, torch.eye(2, dtype=torch.bool))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)


def test_a_first_step_moves_each_part_by_its_own_rate(two_headed, make_stage, samples, run_steps):
    """Adam's first step is the rate times the gradient's sign, whatever the gradient's size."""
    rates = {"encoder": 1e-3, "connector": 2e-3, "llm": 5e-4}
    parts = {part: {"lr": rate} for part, rate in rates.items()}
    before = weights_of(two_headed)
    run_steps(two_headed, make_stage(train=parts, batch_size=4, warmup=2), samples)
    modules = {"encoders": "encoder", "connector": "connector", "language_model": "llm"}
    moved = dict.fromkeys(rates, 0.0)
    for name, parameter in two_headed.named_parameters():
        part = modules[name.partition(".")[0]]
        moved[part] = max(moved[part], float((parameter - before[name]).detach().abs().max()))
    # The first of two warmup steps: half the rate.
    assert moved == pytest.approx({part: rate / 2 for part, rate in rates.items()}, rel=1e-2)


@pytest.mark.parametrize("trained", ["encoder", "connector", "llm"])
def test_frozen_parts_stay_bit_equal(tiny_vlm, make_stage, samples, run_steps, trained):
    model = tiny_vlm()
    before = weights_of(model)
    run_steps(model, make_stage(train={trained: {"lr": 1e-2}}, steps=3, batch_size=4), samples)
    prefix = {"encoder": "encoders", "connector": "connector", "llm": "language_model"}[trained]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith(prefix) for name in changed)


def test_only_matrices_decay(tiny_vlm, make_stage, samples, run_steps):
    model = tiny_vlm()
    parts = {part: {"lr": 1e-2, "weight_decay": 0.1} for part in ("encoder", "connector", "llm")}
    stage = make_stage(train=parts)
    apply_stage(model, stage)
    groups = StageModule(model, stage).param_groups(stage)
    decayed = {id(p) for g in groups for p in g["params"] if g["weight_decay"]}
    assert all((id(p) in decayed) == (p.ndim > 1) for p in model.parameters())
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_both_objectives_are_written_down_and_learn(two_headed, make_stage, make_sample, run_steps):
    colours = ("red", "blue", "one", "two")
    samples = [make_sample(c, 1, ("what color is it?", c), captions=(f"a {c} square",)) for c in colours]
    stage = make_stage(objective={"next_token": 1.0, "contrastive": 0.5}, steps=30, batch_size=4)
    rows = run_steps(two_headed, stage, samples)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert all(r["loss"] == pytest.approx(r["next_token"] + 0.5 * r["contrastive"], rel=1e-5) for r in rows)
    for name in ("next_token", "contrastive"):
        assert rows[-1][name] < 0.5 * rows[0][name]


def test_text_alone_trains(tiny_vlm, make_stage, samples, run_steps):
    rows = run_steps(tiny_vlm(), make_stage(steps=8, batch_size=1), samples[2:3])
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[0]["images"] == 0


def test_a_sample_without_a_supervised_token_is_named(tiny_vlm, make_stage, make_sample, run_steps):
    mute = make_sample("mute", 1, ("say yes", "yes"), weight=0.0)
    with pytest.raises(VlmkitError, match="'mute' has no supervised token"):
        run_steps(tiny_vlm(), make_stage(), [mute])


def test_a_loss_that_is_not_finite_names_the_samples_and_changes_nothing(
    tiny_vlm, make_stage, samples, run_steps
):
    model = tiny_vlm()
    with torch.no_grad():
        model.connector.layers[0].bias.fill_(float("inf"))
    before = weights_of(model)
    with pytest.raises(VlmkitError, match=r"loss nan .* samples ") as raised:
        run_steps(model, make_stage(batch_size=2), [samples[3], samples[1]])
    assert set(re.findall("pair|one", str(raised.value))) == {"pair", "one"}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_bfloat16_keeps_float32_weights_and_float32_may_follow(tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    parts = {part: {"lr": 1e-2} for part in ("encoder", "connector", "llm")}
    runs = {}
    for wanted in ("bf16", "fp32"):
        options = {"stages": [{"train": parts, "steps": 4, "batch_size": 6}]}
        runs[wanted] = tiny_recipe(**options, precision=wanted, output=str(tmp_path / wanted))
    losses = {}
    for wanted, recipe in runs.items():
        run = train_recipe(recipe)
        losses[wanted] = [row["loss"] for row in read_metrics(run.path / "metrics.jsonl")]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
