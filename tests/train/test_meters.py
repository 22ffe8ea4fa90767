"""What a step tells: each figure against one that is worked out another way, and rows that are valid JSON."""

import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vlmkit.data.formats.mixture import Mixture, Share
from vlmkit.objectives import token_loss
from vlmkit.train.flops import StageFlops
from vlmkit.train.head import SupervisedHead
from vlmkit.train.meters import StepMeter, part_norms
from vlmkit.train.metrics import VOLATILE, MetricsFile, read_metrics, repeatable
from vlmkit.train.module import StageModule, batch_weight


def mixed(*groups):
    """Groups of samples as a mixture of sources `source 0`, `source 1`, ... that shows each once an epoch."""
    shares, first = [], 0
    for number, group in enumerate(groups):
        shares.append(Share(f"source {number}", first, len(group), len(group)))
        first += len(group)
    return Mixture(groups, shares)


def one_step(**options):
    return {"batch_size": 4, "steps": 1, **options}


PACKING = {"none": {}, "prefix": {"pack": "prefix"}, "long": {"pack_length": 96}}


@pytest.mark.parametrize("pack", PACKING)
def test_the_loss_of_a_source_is_that_of_its_samples_alone(
    tiny_vlm, make_stage, samples, run_steps, collate, pack
):
    """Rows of both sources lie in the same micro-batches; weights of tokens differ."""
    one, two = [samples[0], samples[3]], [samples[1], samples[2]]
    model = tiny_vlm()
    module, alone = StageModule(model, make_stage()), {}
    for number, group in enumerate((one, two)):
        batch = collate(model, group)
        with torch.no_grad():
            loss, weight = module(batch)["next_token"]
        alone[f"source {number}"] = float(loss / weight)
    (row,) = run_steps(model, make_stage(**one_step(micro_batch_size=3, **PACKING[pack])), mixed(one, two))
    assert row["source_loss"] == pytest.approx(alone, rel=1e-5)
    assert abs(alone["source 0"] - alone["source 1"]) > 1e-2, "a swap would be seen"
    weights = [batch_weight("next_token", collate(model, group)) for group in (one, two)]
    means = [row["source_loss"][name] * weight for name, weight in zip(alone, weights)]
    assert sum(means) / sum(weights) == pytest.approx(row["next_token"], rel=1e-5)


def test_a_source_without_a_supervised_token_in_the_step_is_left_out(
    tiny_vlm, make_stage, samples, run_steps
):
    rows = run_steps(tiny_vlm(), make_stage(steps=4, batch_size=1), mixed(samples[:2], samples[2:]))
    assert [len(row["source_loss"]) for row in rows] == [1] * 4
    assert {name for row in rows for name in row["source_loss"]} == {"source 0", "source 1"}


def test_without_a_mixture_nothing_is_said_of_sources(tiny_vlm, make_stage, samples, run_steps):
    (row,) = run_steps(tiny_vlm(), make_stage(**one_step()), samples)
    assert "source_loss" not in row and row["mfu"] is None


@pytest.mark.parametrize("clip", [1e9, 1e-3])
def test_norms_of_parts_are_measured_before_clipping_and_make_up_the_whole(
    two_headed, make_stage, samples, run_steps, clip
):
    both = {"next_token": 1.0, "contrastive": 0.5}
    captioned = [replace(sample, captions=(sample.id,)) for sample in samples]
    (row,) = run_steps(two_headed, make_stage(**one_step(objective=both, clip=clip)), captioned)
    assert set(row["grad_norms"]) == {"encoder", "connector", "llm", "scale"}
    assert min(row["grad_norms"].values()) > 0
    assert math.hypot(*row["grad_norms"].values()) == pytest.approx(row["grad_norm"], rel=1e-5)


def test_the_norm_of_a_part_is_that_of_its_own_gradients():
    """3 and 4 make 5; a group without a gradient adds nothing."""
    three, four, none, ten = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    three.grad, four.grad, ten.grad = torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([10.0])
    groups = [("llm", [three]), ("encoder", [ten]), ("llm", [four, none]), ("connector", [none])]
    optimizer = SimpleNamespace(param_groups=[{"name": n, "params": p} for n, p in groups])
    assert part_norms(optimizer) == {"llm": 5.0, "encoder": 10.0, "connector": 0.0}


def test_padding_is_the_share_of_places_without_a_token(tiny_vlm, make_stage, samples, run_steps, collate):
    model = tiny_vlm()
    lengths = [int((collate(model, [sample]).branches_BL[0] >= 0).sum()) for sample in samples[2:]]
    assert lengths[0] != lengths[1]
    pair = [replace(sample, conversations=sample.conversations[:1]) for sample in samples[2:]]
    (row,) = run_steps(model, make_stage(steps=1, batch_size=2), pair)
    assert row["tokens"] == sum(lengths) and row["images"] == 1
    assert row["padding"] == pytest.approx(1 - sum(lengths) / (2 * max(lengths)))


def test_one_row_has_no_padding(tiny_vlm, make_stage, samples, run_steps):
    (row,) = run_steps(tiny_vlm(), make_stage(steps=1, batch_size=1), samples[3:])
    assert row["padding"] == 0


def test_speed_counts_the_time_that_data_took(tiny_vlm, make_stage, samples, run_steps):
    class Slow(list):
        def __getitem__(self, number):
            time.sleep(0.05)
            return super().__getitem__(number)

    (row,) = run_steps(tiny_vlm(), make_stage(**one_step()), Slow(samples))
    assert row["data_seconds"] > 0.2
    spent = row["seconds"] + row["data_seconds"]
    assert row["tokens_per_second"] * spent == pytest.approx(row["tokens"], rel=1e-6)
    assert row["images_per_second"] * spent == pytest.approx(row["images"], rel=1e-6)


def test_mfu_is_what_was_asked_for_over_what_could_have_been_done(tiny_vlm, make_stage, samples, collate):
    """On a device of 10^12 operations a second, of which a process alone has one."""
    module = StageModule(tiny_vlm(), make_stage())
    meter = StepMeter(module, SimpleNamespace(samples=samples), Accelerator())
    meter.peak, meter.flops = 1e12, StageFlops(module)
    batches = [collate(module.vlm, samples[:2]), collate(module.vlm, samples[2:])]
    for _, own in meter.each(iter([(0, batches)])):
        for batch in own:
            module(batch)
            meter.forward(batch)
        values = meter.values()
    operations = sum(StageFlops(module)(batch) for batch in batches)
    spent = values["seconds"] + values["data_seconds"]
    assert values["mfu"] * spent * 1e12 == pytest.approx(operations, rel=1e-6) and operations > 1e6


def test_memory_is_the_peak_of_the_process(python):
    # In a process of its own: the suite's has freed more than this before.
    done = python("""
import torch
from vlmkit.train.meters import peak_bytes
before = peak_bytes(torch.device("cpu"))
held = torch.ones(50_000_000)
del held
print(peak_bytes(torch.device("cpu")) - before)
""")
    # Pages that loading the libraries has freed hide a part of the 200 MB.
    assert 100e6 < int(done.stdout) < 250e6, done.stderr


def test_rows_are_json_whatever_happens(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"stage": "a", "step": 1, "loss": math.nan, "grad_norms": {"llm": math.inf, "encoder": 1.5}})
    row = json.loads(file.path.read_text(), parse_constant=refuse)
    assert row == {"stage": "a", "step": 1, "loss": None, "grad_norms": {"llm": None, "encoder": 1.5}}
    assert read_metrics(file.path) == [row]


def test_what_the_machine_decides_is_named_once(tiny_vlm, make_stage, samples, run_steps):
    """Two runs of a stage differ in those figures alone."""
    one, two = (run_steps(tiny_vlm(), make_stage(**one_step()), samples)[-1] for _ in range(2))
    assert repeatable(one) == repeatable(two)
    assert set(VOLATILE) - set(one) == {"features_seconds", "probe_seconds"}


def test_losses_of_rows_are_those_of_all_positions(tiny_vlm, samples, collate):
    """The head keeps each supervised token's loss, row after row, whether it works in chunks or not."""
    model = tiny_vlm()
    batch = collate(model, samples, eos_weight=0.5)
    with torch.no_grad():
        logits = model.language_model(input_ids=batch.input_ids_BL, use_cache=False).logits
    rows = zip(logits.split(1), batch.labels_BL.split(1), batch.weights_BL.split(1))
    wanted = [float(token_loss(*row)[0]) for row in rows]
    counts = (batch.labels_BL[:, 1:] != -100).sum(1).tolist()
    for chunk in (3, 1024):
        head = SupervisedHead(model.get_output_embeddings(), chunk)
        for _ in range(2):
            head.loss(
                lambda: model.language_model(input_ids=batch.input_ids_BL, use_cache=False),
                batch.labels_BL,
                batch.weights_BL,
            )
        assert not head.losses_S.requires_grad
        assert [float(own.sum()) for own in head.losses_S.split(counts)] == pytest.approx(wanted, rel=1e-5)


def test_a_token_of_a_long_row_belongs_to_its_sample(tiny_vlm, samples, collate):
    model = tiny_vlm()
    batch = collate(model, samples, pack_length=96)
    assert len(batch.input_ids_BL) < len(batch.sample_ids), "rows were joined"
    found = dict.fromkeys(batch.sample_ids, 0)
    counts = torch.bincount(batch.owners_BL[batch.branches_BL >= 0]).tolist()
    for name, count in zip(batch.sample_ids, counts, strict=True):
        found[name] += count
    assert found == {s.id: int((collate(model, [s]).branches_BL >= 0).sum()) for s in samples}
    assert ((batch.owners_BL < 0) == (batch.branches_BL < 0)).all()
