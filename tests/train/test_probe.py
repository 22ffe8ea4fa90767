"""Does the model look at the picture: which rows are compared, what is said; nothing else changes."""

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from vlmkit.assemble import assemble
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.formats.mixture import Mixture, Share
from vlmkit.data.prompts import PROMPTS
from vlmkit.data.sample import IMAGE, Message, Sample, open_image
from vlmkit.recipe import Recipe
from vlmkit.train import probe, verdict
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.loop import run_stage
from vlmkit.train.metrics import MetricsFile, read_metrics
from vlmkit.train.module import StageModule
from vlmkit.train.probe import FEWEST_SAMPLES, Probe
from vlmkit.train.probe_samples import GREY, VERSIONS, choose_rows, next_image
from vlmkit.train.stage import apply_stage
from vlmkit.train.stage_run import StageRun
from vlmkit.train.steps import StageData
from vlmkit.train.verdict import Finding, Verdict
from vlmkit_retrieval.images import decode_image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "one": (20, 200, 20), "two": (230, 230, 230)}
NAFLEX = {
    "type": "siglip2_naflex", "max_num_patches": 20,
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 4, "num_patches": 9,
    },
}  # fmt: skip


def picture(colour, size=(16, 16), shade=0):
    png = io.BytesIO()
    Image.new("RGB", size, tuple(max(0, c - shade) for c in colour)).save(png, "png")
    return png.getvalue()


def coloured(count, questions=1):
    """Samples whose answer is the colour of their image, no two of the same shade."""
    samples = []
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        asked = (Message("user", (IMAGE, "what color is it?")), Message("assistant", (name,)))
        samples.append(Sample(f"{name}{i}", (picture(COLOURS[name], shade=i),), (asked,) * questions))
    return samples


def stage_data(model, samples, **rules):
    p = model.processor
    text = TextRules(p.tokenizer, PROMPTS["chat_template"], p.count_fitted, p.image_token_id, **rules)
    return StageData(samples, Collator(p.specs, text, fit=p.fit), 0)


@pytest.fixture
def train(tmp_path, hear):
    """A function: model, stage and samples to the rows of metrics.jsonl and the notes."""

    def run(model, stage, samples, resume=None, folder="."):
        into = tmp_path / folder
        into.mkdir(exist_ok=True)
        apply_stage(model, stage)
        heard = hear()
        run = StageRun(into, Accelerator(), MetricsFile(into / "metrics.jsonl"), heard, stage.clip)
        run_stage(StageModule(model, stage), stage, stage_data(model, samples, pack=stage.pack), run, resume)
        return read_metrics(into / "metrics.jsonl"), heard.notes

    return run


@pytest.fixture
def probe_of(tmp_path, hear):
    """A function: model, stage and samples to the probe of a stage and what its reporter heard."""

    def make(model, stage, samples, **rules):
        heard = hear()
        run = StageRun(tmp_path, Accelerator(), MetricsFile(tmp_path / "m"), heard)
        return Probe(stage, stage_data(model, samples, **rules), 100, run), heard.notes

    return make


def pixels(source):
    return open_image(source).tobytes()


class TestRows:
    def test_every_image_gives_way_to_another_one(self, tiny_vlm, make_sample):
        """Also where rows have the same image, several images, or none."""
        same = coloured(3)[0].images
        samples = [
            *coloured(8), *(make_sample(f"text{i}", 0, ("say yes", "yes")) for i in range(9)),
            *(make_sample(f"pair{i}", 2, ("how many images are there?", "two")) for i in range(3)),
            *(Sample(f"copy{i}", same, coloured(1)[0].conversations) for i in range(4)),
        ]  # fmt: skip
        data = stage_data(tiny_vlm(), samples)
        before = torch.get_rng_state()
        rows = choose_rows(data, 14)
        assert torch.equal(torch.get_rng_state(), before) and rows == choose_rows(data, 14)
        assert len(rows.samples) == 14 and not any("text" in sample.id for sample in rows.samples)
        # Of five with this image: those come first whose image no other one has.
        assert sum(sample.images == same for sample in rows.samples) == 4
        for own, other in zip(rows.samples, rows.others, strict=True):
            assert (own.id, own.conversations) == (other.id, other.conversations)
            assert len(own.images) == len(other.images)
            assert all(pixels(a) != pixels(b) for a, b in zip(own.images, other.images, strict=True))

    def test_images_give_way_to_those_of_their_size(self):
        places = {"a": ((9, 9), "a"), "b": ((4, 4), "b"), "c": ((9, 9), "c"), "d": ((4, 4), "d")}
        assert next_image(places) == {"b": "d", "d": "a", "a": "c", "c": "b"}
        assert next_image({"a": ((9, 9), "a")}) == {}

    def test_another_image_has_its_own_number_of_tokens(self, tiny_vlm, make_stage, probe_of):
        """NaFlex: the losses of shuffled rows are those of samples that had these images all along."""
        model = tiny_vlm(encoder=NAFLEX)
        sizes = [(16, 16), (32, 8), (8, 32), (8, 8), (24, 12), (12, 24), (20, 16), (16, 8)]
        samples = [
            Sample(s.id, (picture((9 * i, 200 - 9 * i, 50), size),), s.conversations)
            for i, (s, size) in enumerate(zip(coloured(8), sizes, strict=True))
        ]
        probe, notes = probe_of(model, make_stage(probe_every=1, batch_size=3), samples)
        counts = [
            [len(item.rows[0].ids) for item in probe.rows.prepared(version, 0, 8)] for version in VERSIONS
        ]
        assert counts[0] == counts[2] != counts[1] and sorted(counts[0]) == sorted(counts[1])
        module = StageModule(model, make_stage())
        found = probe._losses(probe.rows, module)
        for version, losses in zip(VERSIONS, zip(*found, strict=True), strict=True):
            for (item,), loss in zip(
                [probe.rows.prepared(version, i, i + 1) for i in range(8)], losses, strict=True
            ):
                total, weight = module(probe.rows.collate.batch([item]))["next_token"]
                assert float(total.detach() / weight) == pytest.approx(loss, abs=1e-5)
        assert not notes

    def test_blank_images_are_grey_and_of_the_same_size(self, tiny_vlm, make_stage, probe_of):
        probe, _ = probe_of(tiny_vlm(), make_stage(probe_every=1), coloured(8))
        grey = probe.rows.collate.prepare(
            Sample("g", (Image.new("RGB", (16, 16), GREY),), coloured(1)[0].conversations), 0
        )
        for item in probe.rows.prepared("blank", 0, 8):
            assert (item.images.pixels == grey.images.pixels).all() and item.images.sizes == grey.images.sizes

    def test_processes_share_the_rows(self, tiny_vlm):
        rows = choose_rows(stage_data(tiny_vlm(), coloured(9)), 9)
        parts = [rows.share(rank, 2) for rank in range(2)]
        assert [len(part.samples) for part in parts] == [4, 4] and not {*parts[0].samples} & {
            *parts[1].samples
        }
        assert all(len(part.others) == 4 for part in parts)

    @pytest.mark.parametrize("case", ["one image", "text", "few"])
    def test_nothing_to_compare_is_said_once(self, tiny_vlm, make_stage, make_sample, train, case):
        samples = {
            "one image": [Sample(s.id, coloured(1)[0].images, s.conversations) for s in coloured(9)],
            "text": [make_sample(f"t{i}", 0, ("say yes", "yes")) for i in range(9)],
            "few": coloured(FEWEST_SAMPLES - 1),
        }[case]  # fmt: skip
        rows, notes = train(tiny_vlm(), make_stage(probe_every=1, steps=3), samples)
        assert len(notes) == 1 and "is not probed: 8 samples with images, and two images" in notes[0]
        assert len(rows) == 3 and not any("probe/true" in row for row in rows)

    @pytest.mark.parametrize("off", [{"probe_every": None}, {"probe_every": 4}])
    def test_it_can_be_off(self, tiny_vlm, make_stage, train, off):
        rows, notes = train(tiny_vlm(), make_stage(steps=3, **off), coloured(8))
        assert not notes and not any("probe/true" in row for row in rows)


@pytest.mark.parametrize("pack", [{}, {"pack": "prefix"}, {"pack": "prefix", "pack_length": 90}])
def test_packing_does_not_change_what_is_found(tiny_vlm, make_stage, probe_of, pack):
    model = tiny_vlm()
    module = StageModule(model, make_stage())
    probe, _ = probe_of(model, make_stage(probe_every=1, micro_batch_size=3), coloured(8, 3), **pack)
    found = torch.tensor(probe._losses(probe.rows, module))
    for sample, losses in zip(probe.rows.samples, found, strict=True):
        total, weight = module(probe.rows.collate([(sample, 0)]))["next_token"]
        assert float(losses[0]) == pytest.approx(float(total.detach() / weight), abs=1e-5)
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-4, "another image has another loss"


@pytest.mark.parametrize("connector", ["gated_cross_attention", "mllama"])
def test_blocks_inside_the_language_model_are_probed(tiny_recipe, roughen, make_stage, probe_of, connector):
    raw = tiny_recipe().model_dump()
    raw["model"]["connector"] = {"type": connector, "every": 1, "heads": 2}
    model = roughen(assemble(Recipe.model_validate(raw))).eval()
    probe, _ = probe_of(model, make_stage(probe_every=1), coloured(8))
    found = torch.tensor(probe._losses(probe.rows, StageModule(model, make_stage())))
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-4


def test_training_is_the_same_with_and_without_probes(tiny_vlm, make_stage, train):
    """Down to the last bit, with dropout: nothing is drawn, and what trains is in training mode again."""
    found = {}
    for every in (None, 1):
        model = tiny_vlm(llm_options={"attention_dropout": 0.2})
        torch.manual_seed(0)
        rows, _ = train(
            model, make_stage(steps=4, batch_size=4, probe_every=every), coloured(8), None, str(every)
        )
        found[every] = [row["loss"] for row in rows], copy.deepcopy(model.state_dict())
        assert ["probe/true" in row for row in rows] == [every == 1] * 4
    assert found[None][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[None][1].items())


def test_a_probe_is_without_dropout_and_training_goes_on_with_it(tiny_vlm, make_stage, probe_of):
    model = tiny_vlm(llm_options={"attention_dropout": 0.5})
    stage = make_stage(probe_every=1)
    apply_stage(model, stage)
    module = StageModule(model, stage).train()
    looked, _ = probe_of(model, stage, coloured(8))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(looked._losses(looked.rows, module))
    assert found[0] == found[1]
    assert module.training and model.language_model.training


def finding(cost, samples=32, noise=0.0, blank=0.5):
    """Losses around one; others' images cost so much on average."""
    wobble = torch.randn(samples, generator=torch.Generator().manual_seed(0)) * noise
    costs = cost + wobble - wobble.mean()
    return Finding([1.0] * samples, [1 + float(c) for c in costs], [1.0 + blank] * samples)


class TestVerdict:
    def hear(self, make_stage, *findings, start=100, **state):
        words = Verdict(make_stage(warmup=0), 1000, **state)
        return [words.hear(start + 100 * i, found) for i, found in enumerate(findings)], words

    def test_one_good_probe_is_enough_and_said_once(self, make_stage):
        good = finding(0.5, noise=0.4)
        assert good.certainty > 6
        said, _ = self.hear(make_stage, good, good)
        assert "step 100: the model looks at the picture: loss 1 on 32 samples" in said[0] and said[1] == ""

    def test_two_bad_probes_in_a_row_are_needed(self, make_stage):
        bad, good = finding(0.05, noise=0.4), finding(0.5, noise=0.4)
        assert 0 < bad.certainty < 2.5
        assert self.hear(make_stage, bad, good, bad)[0][0::2] == ["", ""]
        said, _ = self.hear(make_stage, good, bad, bad)
        assert "step 300: the model no longer looks at the picture, by 2 probes in a row" in said[2]

    def test_between_both_nothing_is_said_and_nothing_counted(self, make_stage):
        """Half of the samples cost much, the others nothing, as where the answers are yes and no."""
        halves = Finding([1.0] * 8, [2.0] * 4 + [1.0] * 4, [2.0] * 8)
        bad = finding(0.0, noise=0.4)
        assert 2.5 < halves.certainty < 4
        said, words = self.hear(make_stage, bad, halves, bad, halves)
        assert said == [""] * 4 and words.state == {"failed": 0, "told": ""}

    def test_it_is_said_again_after_twice_as_many(self, make_stage):
        said, _ = self.hear(make_stage, *[finding(0.0, noise=0.4)] * 9)
        assert [i + 1 for i, text in enumerate(said) if text] == [2, 4, 8]

    def test_a_model_that_has_just_begun_need_not_look(self, make_stage):
        bad = finding(0.0, noise=0.4)
        assert not any(self.hear(make_stage, *[bad] * 3, start=-201)[0])
        late = Verdict(make_stage(warmup=500), 1000)
        assert not any(late.hear(step, bad) for step in (100, 200, 300, 499))

    def test_it_says_where_to_look(self, make_stage):
        same, swapped = finding(0.0, blank=0.0), finding(-0.5, noise=0.4)
        for bad, words in (
            (same, "does not depend on the image at all"),
            (swapped, "Others' images help more than its own"),
            (finding(0.0, noise=0.4), "Images change the loss"),
        ):
            text = self.hear(make_stage, bad, bad)[0][1]
            assert words in text and "the connector trains with the learning rate 0.01" in text
        frozen = self.hear(lambda **o: make_stage(train={"llm": {"lr": 1e-2}}, **o), same, same)[0][1]
        assert "the connector is frozen in this stage" in frozen

    def test_sums_in_another_order_are_no_look(self, make_stage):
        """A constant connector in bfloat16: tiny differences that are all of one sign."""
        tiny = Finding([1.0] * 32, [1 + 1e-6] * 32, [1 + 1e-6] * 32)
        assert tiny.certainty == 0.0 and "not depend on the image" in self.hear(make_stage, tiny, tiny)[0][1]

    def test_a_loss_that_is_not_finite_is_no_evidence(self, make_stage):
        said, words = self.hear(make_stage, Finding([float("nan")] * 9, [1.0] * 9, [1.0] * 9))
        assert said == [""] and words.state == {"failed": 0, "told": ""}


class TestTinyRuns:
    """The rule on tiny models that learn to name colours, with the connectors of benchmarks/probe.py."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(verdict, "EARLIEST", 12)
        monkeypatch.setattr(probe, "WANTED_SAMPLES", 32)
        monkeypatch.syspath_prepend(str(BENCHMARKS))

    def model(self, tiny_recipe, connector):
        raw = tiny_recipe(connector={"type": connector}).model_dump()
        torch.manual_seed(0)
        return assemble(Recipe.model_validate(raw))

    def stage(self, make_stage, **options):
        parts = {part: {"lr": 1e-2} for part in ("encoder", "connector", "llm")}
        return make_stage(train=parts, batch_size=8, steps=24, probe_every=12, clip=1.0, **options)

    def test_a_good_model_is_seen_to_look(self, tiny_recipe, make_stage, train):
        rows, notes = train(self.model(tiny_recipe, "mlp"), self.stage(make_stage), coloured(32))
        assert len(notes) == 1 and "the model looks at the picture" in notes[0]
        last = rows[-1]
        assert last["probe/true"] < 0.7 * min(last["probe/shuffled"], last["probe/blank"])

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("Constant", "does not depend on the image"),
            ("WrongRow", "paired rightly"),
            ("Noise", "a sample's own"),
        ],
    )
    def test_broken_connectors_are_flagged(self, tiny_recipe, make_stage, train, kind, words):
        model = self.model(tiny_recipe, f"broken_connectors:{kind}Connector")
        _, notes = train(model, self.stage(make_stage), coloured(32))
        assert len(notes) == 1 and "step 24: the model does not look at the picture" in notes[0]
        assert words in notes[0]

    def test_a_resumed_run_says_what_the_whole_one_does(self, tiny_recipe, make_stage, train, tmp_path):
        """The first of the two probes that count was before the checkpoint."""
        kind = "broken_connectors:ConstantConnector"
        stage = self.stage(make_stage, checkpoint_every=18)
        _, whole = train(self.model(tiny_recipe, kind), stage, coloured(32), None, "whole")
        saved = tmp_path / "whole/checkpoints/only-step-000018"
        _, resumed = train(self.model(tiny_recipe, kind), stage, coloured(32), saved, "resumed")
        assert resumed[0].startswith("stage only goes on after step 18 of")
        assert whole == resumed[1:] and len(whole) == 1
        assert latest_checkpoint(tmp_path / "whole", "only").name.endswith("24")


def test_choosing_opens_each_image_once_and_stops_where_it_has_enough(tiny_vlm, monkeypatch):
    """Of 200 samples with two images; and of a mixture as many of a source as its share says."""
    opened = []

    def counting(source, *others):
        opened.append(source)
        return open_image(source, *others)

    monkeypatch.setattr("vlmkit.train.probe_samples.open_image", counting)
    decoded = []
    monkeypatch.setattr(
        "vlmkit.data.sample.decode_image", lambda data: decoded.append(data) or decode_image(data)
    )
    two = [replace(coloured(2)[i % 2], id=f"s{i}") for i in range(200)]
    rows = choose_rows(stage_data(tiny_vlm(), two), 8)
    assert len(rows.samples) == 8 and len(opened) == 16
    # Those that are chosen are prepared once more, with their other images.
    assert len(decoded) == 16 + 8
    sources = [Share("few", 0, 100, 16), Share("many", 100, 100, 184)]
    different = [replace(sample, id=f"s{i}") for i, sample in enumerate(coloured(200))]
    rows = choose_rows(stage_data(tiny_vlm(), Mixture([different[:100], different[100:]], sources)), 32)
    few = sum(int(sample.id.rpartition("s")[2]) < 100 for sample in rows.samples)
    assert len(rows.samples) == 32 and few < 9
