"""A loss or a gradient that is not finite: who is to blame, and what is left out."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from vlmkit.assemble import assemble
from vlmkit.data.collate import Collator, TextRules
from vlmkit.data.prompts import PROMPTS
from vlmkit.errors import VlmkitError
from vlmkit.recipe import Block
from vlmkit.train.blame import rows_of
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.curves import plot_metrics
from vlmkit.train.guard import MOST_IN_A_ROW, NON_FINITE
from vlmkit.train.loop import run_stage
from vlmkit.train.metrics import MetricsFile, read_metrics
from vlmkit.train.module import StageModule
from vlmkit.train.stage import apply_stage
from vlmkit.train.stage_run import StageRun
from vlmkit.train.steps import StageData

SKIP = {"on_non_finite": "skip"}


@pytest.fixture
def train(tmp_path, hear):
    """A function: model, stage and samples to the rows of metrics.jsonl and the notes."""

    def run(model, stage, samples, encode=None, resume=None):
        p = model.processor
        rules = TextRules(p.tokenizer, PROMPTS["chat_template"], p.count_fitted, p.image_token_id)
        apply_stage(model, stage)
        module = StageModule(model, stage, encode and encode(model))
        heard = hear()
        into = StageRun(tmp_path, Accelerator(), MetricsFile(tmp_path / "metrics.jsonl"), heard, stage.clip)
        run_stage(module, stage, StageData(samples, Collator(p.specs, rules), 0), into, resume)
        return read_metrics(tmp_path / "metrics.jsonl"), heard.notes

    return run


@pytest.fixture
def plain(make_sample):
    """A function: name to a sample with a picture that is of one colour throughout."""

    def make(name):
        sample = make_sample(name, 1, ("what color is it?", "red"))
        object.__setattr__(sample, "images", (Image.new("RGB", (16, 16), (9, 9, 9)),))
        return sample

    return make


def patches_of(model, pixels, sizes, change):
    """Features whose patches were changed, given (patches of each image, its contrast)."""
    (features,) = model.encode_images(pixels, sizes)
    contrasts = [(row.view(3, -1) - row.view(3, -1)[:, :1]).abs().max() for row in pixels]
    parts = [change(v, contrast) for v, contrast in zip(features.views(), contrasts, strict=True)]
    changed = copy.copy(features)
    object.__setattr__(changed, "patches_TV", torch.cat(parts))
    return [changed]


def divides_by_contrast(model):
    """Not a number for an image without contrast."""
    return lambda *images: patches_of(model, *images, lambda v, contrast: v * (contrast / contrast))


def roots(model):
    """The same loss for all images, and a gradient that is not a number without contrast."""

    def change(patches, contrast):
        kept = patches * (contrast > 0)
        return patches + (kept.pow(2).sum().sqrt() - kept.detach().pow(2).sum().sqrt())

    return lambda *images: patches_of(model, *images, change)


@pytest.mark.parametrize(
    ("encode", "says"), [(divides_by_contrast, "on its own"), (roots, "gradient on its")]
)
@pytest.mark.parametrize("micro", [None, 1])
def test_the_samples_to_blame_are_named_and_no_other(
    tiny_vlm, make_stage, make_sample, plain, train, encode, says, micro
):
    model = tiny_vlm()
    good = [make_sample(name, 1, ("say yes", "yes")) for name in ("good", "fine")]
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises(VlmkitError, match=f"step 1 of stage only, with samples .*{says}") as raised:
        train(
            model, make_stage(batch_size=4, micro_batch_size=micro), [*good, plain("p"), plain("q")], encode
        )
    named = str(raised.value).partition("with samples ")[2].partition(" (")[0]
    assert set(named.split(", ")) == {"p", "q"}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_that_are_broken_are_named_instead(tiny_vlm, make_stage, samples, train):
    model = tiny_vlm()
    with torch.no_grad():
        model.connector.layers[0].bias.fill_(float("inf"))
    with pytest.raises(VlmkitError, match=r"weights are not finite either \(vlm.connector.layers.0.bias\)"):
        train(model, make_stage(batch_size=2), samples)


def test_skip_leaves_the_step_out_and_lists_the_samples(
    tiny_vlm, make_stage, make_sample, plain, train, tmp_path
):
    """One sample a step: each good one trains as if the bad one's step had never been."""
    samples = [make_sample("a", 1, ("say yes", "yes")), plain("bad"), make_sample("b", 1, ("say yes", "red"))]
    stage = make_stage(batch_size=1, steps=6, **SKIP)
    rows, notes = train(tiny_vlm(), stage, samples, divides_by_contrast)
    out = [row["step"] for row in rows if row["non_finite"]]
    assert len(out) == 2 and all((row["loss"] is None) == (row["step"] in out) for row in rows)
    listed = [json.loads(line) for line in (tmp_path / NON_FINITE).read_text().splitlines()]
    assert listed == [{"stage": "only", "step": n, "id": "bad", "kind": "loss"} for n in out]
    assert len(notes) == 3 and "the step is left out; samples bad" in notes[0]
    assert "2 steps were left out" in notes[-1] and "most often with sample bad" in notes[-1]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "curves.png")


def test_a_step_that_is_left_out_changes_nothing(tiny_vlm, make_stage, plain, train):
    """Neither weights nor the moments of the optimiser, nor the statistics of batches."""
    model = tiny_vlm()
    model.connector.norm = torch.nn.BatchNorm1d(16)

    def encode(model):
        divides = divides_by_contrast(model)

        def normed(*images):
            (features,) = divides(*images)
            object.__setattr__(features, "patches_TV", model.connector.norm(features.patches_TV))
            return [features]

        return normed

    before = copy.deepcopy(model.state_dict())
    rows, _ = train(model, make_stage(batch_size=1, **SKIP), [plain("bad")], encode)
    assert [row["non_finite"] for row in rows] == [1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_too_many_in_a_row_end_the_run_also_after_a_resume(tiny_vlm, make_stage, plain, train, tmp_path):
    stage = make_stage(batch_size=1, steps=MOST_IN_A_ROW + 2, checkpoint_every=4, **SKIP)
    said = rf"step {MOST_IN_A_ROW + 1} of .* {MOST_IN_A_ROW + 1} in a row are too many"
    for resume in (None, "latest"):
        found = resume and latest_checkpoint(tmp_path, "only")
        with pytest.raises(VlmkitError, match=said):
            train(tiny_vlm(), stage, [plain("bad")], divides_by_contrast, found)
    assert found.name.endswith("8")
    listed = read_metrics(tmp_path / NON_FINITE)
    assert [row["step"] for row in listed] == list(range(1, MOST_IN_A_ROW + 2)), "none is listed twice"


@pytest.mark.parametrize("connector", [None, {"type": "gated_cross_attention", "every": 1, "heads": 2}])
def test_rows_alone_have_the_losses_of_rows_together(
    tiny_recipe, roughen, make_stage, samples, collate, connector
):
    """Several images a row, none, and several questions: nothing of another row is in the row."""
    recipe = tiny_recipe()
    if connector:
        model = recipe.model.model_copy(update={"connector": Block.model_validate(connector)})
        recipe = recipe.model_copy(update={"model": model})
    module = StageModule(roughen(assemble(recipe)).eval(), make_stage())
    batch = collate(module.vlm, samples)
    with torch.no_grad():
        whole, weight = module(batch)["next_token"]
        by_row, weights = module(batch, by_row=True)["next_token"]
        alone = [module(row)["next_token"] for row in rows_of(batch, module.vlm.specs)]
    assert float(whole) == pytest.approx(float(by_row.sum()), rel=1e-6) and float(weight) == weights.sum()
    assert by_row.tolist() == pytest.approx([float(loss) for loss, _ in alone], abs=1e-5)
    assert weights.tolist() == [float(own) for _, own in alone]
    assert len({round(float(loss), 3) for loss, _ in alone}) > 4, "rows differ, or nothing was compared"


def test_rows_that_hold_several_samples_name_all_of_them(tiny_vlm, make_stage, samples, collate):
    """Each sample's loss is what it is in a row of its own."""
    module = StageModule(tiny_vlm(), make_stage())
    plain, packed = collate(module.vlm, samples), collate(module.vlm, samples, pack_length=60)
    rows = list(rows_of(packed, module.vlm.specs))
    assert 1 < len(rows) < len(packed.sample_ids) and max(len(row.sample_ids) for row in rows) > 1
    assert tuple(name for row in rows for name in row.sample_ids) == packed.sample_ids
    with torch.no_grad():
        found = [module(batch, by_row=True)["next_token"] for batch in (plain, packed)]
        alone = [module(row)["next_token"] for row in rows]
    mine, theirs = ([*zip(b.sample_ids, f[0].tolist())] for b, f in zip((plain, packed), found, strict=True))
    for (name, loss), (other, again) in zip(sorted(mine), sorted(theirs), strict=True):
        assert name == other and loss == pytest.approx(again, abs=1e-5)
    assert sum(float(loss) for loss, _ in alone) == pytest.approx(float(found[1][0].sum()), abs=1e-4)


def test_a_stop_says_how_to_go_on_and_does_not_blame_statistics_of_batches(
    tiny_vlm, make_stage, plain, train
):
    """A batch norm's statistics are not finite after such a pass, and are put back: no weight is broken."""
    model = tiny_vlm()
    model.connector.norm = torch.nn.BatchNorm1d(16)

    def encode(model):
        divides = divides_by_contrast(model)

        def normed(*args):
            features = divides(*args)
            model.connector.norm(features[0].patches_TV)
            return features

        return normed

    stage = make_stage(batch_size=2, steps=1)
    with pytest.raises(VlmkitError) as raised:
        train(model, stage, [plain("a"), plain("b")], encode)
    assert "weights are not finite" not in str(raised.value)
    assert "stages.only.on_non_finite=skip --resume goes on" in str(raised.value)
    assert model.connector.norm.running_mean.isfinite().all()
