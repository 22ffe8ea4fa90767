"""Learned tokens among the image tokens: row separators, image start and end, with any connector."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vlmkit.assemble import assemble
from vlmkit.budget import Budget
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.inference import question
from vlmkit.look.answer import deal, looked_at
from vlmkit.look.scene import NotPossible
from vlmkit.plan import make_plan
from vlmkit.recipe import Recipe
from vlmkit.splice import Marks, Splice, count_tokens, fit_images
from vlmkit.tiny import tiny_runs
from vlmkit.train.module import StageModule
from vlmkit.train.stage import apply_stage, part_module
from vlmkit.vlm import VLM
from vlmkit_connectors import (
    CONNECTORS,
    Connector,
    Groups,
    ImageTokens,
    MLPConnector,
    VisionFeatures,
)

ALL = {"row_separator": True, "image_start": True, "image_end": True}
ROW, START, END = -1.0, -2.0, -3.0
NO_NEWLINE = {"type": "anyres", "newline": False}


class Patches(Connector):
    """Each patch is a token."""

    def num_tokens(self, grid):
        return grid[0] * grid[1]

    def token_grid(self, grid):
        return grid

    def forward(self, features, text=None):
        return ImageTokens(features[0].patches_TV, tuple(r * c for r, c in features[0].grids))


class Bag(Patches):
    """The same in no order."""

    def __init__(self, vision_widths=(1,), text_width=1):
        super().__init__()

    def token_grid(self, grid):
        return None


def written(image, layout, marks, side=8):
    """The run of one image of patches 0, 1, 2, ... through a splice whose marks have known values."""
    spec = VisionSpec(side, 4, 1, layout=layout)
    splice = Splice([(spec, Patches())], 1, marks)
    for token, value in ((splice.row_D, ROW), (splice.start_D, START), (splice.end_D, END)):
        if token is not None:
            torch.nn.init.constant_(token, value)
    grids = torch.tensor([[view.rows, view.cols] for view in spec.features(image, 0)])
    patches_T1 = torch.arange(float(grids.prod(1).sum()))[:, None]
    seen = VisionFeatures(patches_T1, grids, torch.zeros(len(grids), dtype=torch.int64))
    (stream,) = splice((spec, Patches()), [seen], [(*image, 0)])
    run = splice.join([stream]).flatten().tolist()
    assert len(run) == count_tokens([spec], Patches(), marks, (*image, 0))
    return run


@pytest.mark.parametrize(
    ("marks", "run"),
    [
        (Marks(), [0, 1, 2, 3]),
        (Marks(row_separator=True), [0, 1, ROW, 2, 3, ROW]),
        (Marks(image_start=True), [START, 0, 1, 2, 3]),
        (Marks(image_end=True), [0, 1, 2, 3, END]),
        (Marks(**ALL), [START, 0, 1, ROW, 2, 3, ROW, END]),
    ],
)
def test_the_order_by_hand(marks, run):
    assert written((8, 8), "square", marks) == run


def test_the_order_of_tiles_by_hand():
    """Two tiles of 1 x 1 patch beside each other: each view has its rows, and so have tiles in one grid."""
    tiles = written((8, 4), "tiles", Marks(**ALL), side=4)
    assert tiles == [START, 1, ROW, 2, ROW, 0, ROW, END]
    joined = written((8, 4), {**NO_NEWLINE, "pinpoints": [[2, 1]]}, Marks(**ALL), side=4)
    assert joined == [START, 0, ROW, 1, 2, ROW, END]


def test_an_image_of_several_streams_has_one_start_and_one_end():
    spec, marks = VisionSpec(8, 4, 1), Marks(**ALL)
    count = count_tokens([spec, spec], Groups([Patches(), Patches()]), marks, (8, 8, 0))
    assert count == 1 + 2 * (2 * (2 + 1)) + 1
    parts = [torch.full((6, 1), float(i)) for i in range(2)]
    run = Splice([(spec, Patches())], 1, Marks(image_start=True, image_end=True))
    torch.nn.init.constant_(run.start_D, START)
    torch.nn.init.constant_(run.end_D, END)
    assert run.join(parts).flatten().tolist() == [START, *[0] * 6, *[1] * 6, END]


def ask(model, sizes, noise):
    images = [noise(i, size) for i, size in enumerate(sizes)]
    rows = [question(own, "say yes") for own in (images[:1], images[1:], [])]
    return model.processor.prompts([r.conversation for r in rows], [r.images for r in rows])


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits[batch["attention_mask"].bool()]


SIZES = [(40, 17), (16, 16), (9, 50)]
SIGLIP = {
    "type": "siglip",
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "patch_size": 4, "image_size": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def build(tiny_recipe, roughen):
    """A function: marks, fusion and layouts, one an encoder, to a model with rough weights."""

    def make(splice=None, fusion="concat", layouts=("square",), **model):
        raw = tiny_recipe(splice=splice).model_dump()
        encoders = [{**SIGLIP, "layout": layout} for layout in layouts]
        raw["model"] |= {"encoders": encoders, "fusion": fusion, **model}
        return roughen(assemble(Recipe.model_validate(raw))).eval()

    return make


FUSED = [(fusion, layout) for fusion in ("concat", "groups") for layout in ("square", "tiles", NO_NEWLINE)]


@pytest.mark.parametrize(("fusion", "layout"), [*FUSED, ("interleave", "tiles")])
def test_fused_encoders_give_what_is_counted(build, noise, fusion, layout):
    splice = {**ALL, "row_separator": fusion != "interleave"}
    model, plain = (build(marks, fusion, [layout] * 2) for marks in (splice, {}))
    batch = ask(model, SIZES, noise)
    counts = [model.count_tokens(size) for size in SIZES]
    found = (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert found == [counts[0], sum(counts[1:]), 0]
    more = [count - plain.count_tokens(size) for count, size in zip(counts, SIZES, strict=True)]
    assert min(more) > 2 if splice["row_separator"] else more == [2, 2, 2]
    assert torch.isfinite(logits(model, batch)).all()


def test_interleaved_tokens_have_no_rows(build):
    with pytest.raises(UsageError, match=r"row_separator .* tokens of Interleaved form none; .*\(.*mlp"):
        build({"row_separator": True}, "interleave", ["square"] * 2)


@pytest.mark.parametrize("layout", ["anyres", "anyres_max"])
def test_a_layout_writes_newlines_or_the_splice_separators(build, layout):
    with pytest.raises(UsageError, match="one of both; set newline: false in the layout, or row_separator"):
        build({"row_separator": True}, layouts=[layout])
    assert build({"image_start": True}, layouts=[layout]).splice.newline is not None
    assert build(ALL, layouts=[{"type": layout, "newline": False}]).splice.newline is None


def test_tokens_without_a_grid_have_no_rows_and_can_start_and_end(build, monkeypatch):
    monkeypatch.setitem(CONNECTORS, "bag", Bag)
    with pytest.raises(
        UsageError, match=r"tokens of Bag form none; use a connector .*\(.*mlp.*row_separator: "
    ):
        build({"row_separator": True}, connector={"type": "bag"})
    monkeypatch.setitem(CONNECTORS, "mlp", Bag)
    spec = VisionSpec(8, 4, 1)
    assert count_tokens([spec], Bag(), Marks(image_start=True, image_end=True), (8, 8, 0)) == 6


def test_every_mark_matters_and_is_its_own(build, noise):
    model = build(ALL)
    batch = ask(model, SIZES, noise)
    before = logits(model, batch)
    for name in ("row_D", "start_D", "end_D"):
        kept = getattr(model.splice, name).detach().clone()
        with torch.no_grad():
            getattr(model.splice, name).mul_(2)
            assert (logits(model, batch) - before).abs().max() > 1e-4
            getattr(model.splice, name).copy_(kept)
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("images", [True, False])
def test_gradients_reach_the_marks(build, tiny_recipe, rows, collate, images):
    """Without an image, too: another process may have one. They train with the connector, and only so."""
    model, stage = build(ALL), tiny_recipe().stages[0]
    apply_stage(model, stage)
    marks = list(model.splice.parameters())
    assert len(marks) == 3 and all(p.requires_grad for p in marks)
    assert {id(p) for p in marks} <= {id(p) for p in part_module(model, "connector").parameters()}
    some = [row for row in rows if bool(row.images) is images]
    loss, weight = StageModule(model, stage)(collate(model, some))["next_token"]
    (loss / weight).backward()
    assert [float(p.grad.abs().max()) > 0 for p in marks] == [images] * 3
    llm_alone = stage.model_copy(update={"train": {"llm": stage.train["connector"]}})
    apply_stage(model, llm_alone)
    assert not any(p.requires_grad for p in marks)


@pytest.mark.parametrize("layout", ["square", NO_NEWLINE])
def test_saved_and_loaded_it_is_the_same(build, noise, tmp_path, layout):
    model = build(ALL, layouts=[layout])
    model.save_pretrained(tmp_path)
    again = VLM.from_pretrained(tmp_path).eval()
    assert again.splice.marks == again.processor.marks == Marks(**ALL)
    assert torch.equal(logits(again, ask(again, SIZES, noise)), logits(model, ask(model, SIZES, noise)))
    picture = noise(1, (40, 9))
    assert again.ask(picture, "say yes", max_new_tokens=3) == model.ask(picture, "say yes", max_new_tokens=3)


def test_a_model_saved_before_there_were_marks_loads_and_counts_as_before(build, noise, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    assert stored.pop("splice") == dict.fromkeys(ALL, False)
    file.write_text(json.dumps(stored))
    again = VLM.from_pretrained(tmp_path).eval()
    assert again.splice.marks == Marks() and list(again.splice.parameters()) == []
    assert again.count_tokens((16, 16)) == again.processor.count_tokens((16, 16)) == 4
    assert torch.equal(logits(again, ask(again, SIZES, noise)), logits(model, ask(model, SIZES, noise)))


def test_init_from_compares_marks(build, tiny_recipe, tmp_path):
    model = build(ALL)
    model.save_pretrained(tmp_path)
    recipe = {"encoder": {**SIGLIP, "layout": "square"}, "init_from": str(tmp_path)}
    with pytest.raises(UsageError, match=r"has the splice .*'row_separator': True.*, the recipe states "):
        assemble(tiny_recipe(**recipe, splice={"image_start": True}))
    again = assemble(tiny_recipe(**recipe, splice=ALL))
    assert torch.equal(again.splice.row_D, model.splice.row_D)


def test_a_budget_counts_marks():
    spec = VisionSpec(16, 4, 4, layout={"type": "native", "max_patches": 100})
    connector, limit = MLPConnector([4], 8), Budget(per_image=40, per_sample=70)
    sizes, with_marks = [(24, 24), (48, 12), (12, 40)], Marks(**ALL)
    for marks in (Marks(), with_marks):
        fitted = fit_images([spec], connector, marks, limit, sizes)
        counts = [count_tokens([spec], connector, marks, image) for image in fitted]
        assert max(counts) <= 40 and sum(counts) <= 70
    # The patches alone fit; separators, a start and an end on top of them do not.
    exact = Budget(per_image=count_tokens([spec], connector, Marks(), (24, 24, 0)))
    assert fit_images([spec], connector, Marks(), exact, sizes[:1]) == [(24, 24, 0)]
    assert fit_images([spec], connector, with_marks, exact, sizes[:1])[0][2] > 0


def test_model_and_processor_keep_a_budget_with_marks(build, noise):
    # Two tiles and the thumbnail: 4 tokens each with 2 separators, a start and an end.
    sizes, options = [(32, 16)], {"layouts": ["tiles"], "image_tokens": {"per_image": 19}}
    assert build({}, **options).fit(sizes) == [(32, 16, 0)]
    model = build(ALL, **options)
    assert model.fit(sizes) == model.processor.fit(sizes) != [(32, 16, 0)]
    batch = ask(model, sizes, noise)
    assert (
        0
        < int((batch["input_ids"] == model.config.image_token_id).sum())
        == model.count_tokens((32, 16))
        < 20
    )
    assert torch.isfinite(logits(model, batch)).all()


def test_plan_and_tiny_runs_know_the_marks(tiny_recipe, tiny_clip, tiny_vlm):
    options = {"encoder": tiny_clip, "connector": {"pool": 1}}
    plans = [make_plan(tiny_recipe(**options, splice=splice)).tokens for splice in (ALL, {})]
    assert all(plans[0][size] == plans[1][size] + 4 + 2 for size in plans[0])
    assert plans[0] == {size: tiny_vlm(**options, splice=ALL).count_tokens(size) for size in plans[0]}
    (tiny,) = tiny_runs(tiny_recipe(splice=ALL))
    assert tiny.model.splice.model_dump() == ALL


# The hidden state below the first block: each patch knows itself and nothing else.
BLIND = {"type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "layer": 0}
ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1}


@pytest.mark.parametrize(("which", "row", "col"), [(0, 1, 2), (1, 3, 0), (1, 0, 3)])
def test_look_knows_which_tokens_are_marks(tiny_vlm, noise, which, row, col):
    """A patch changes its own cell; up to the common normaliser, all other cells keep their values."""
    model = tiny_vlm(encoder=BLIND, connector={"pool": 1}, llm_options=ONE_HEAD, splice=ALL)
    images = [noise(0), noise(1)]
    before = looked_at(model, images, "what color is it?", layer=1)
    pixels = np.array(images[which])
    pixels[4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = (255, 0, 200)
    images[which] = Image.fromarray(pixels)
    after = looked_at(model, images, "what color is it?", layer=1)
    ratios = np.stack(after.maps) / np.stack(before.maps)
    assert np.argwhere(np.abs(ratios / np.median(ratios) - 1) > 1e-3).tolist() == [[which, row, col]]
    assert after.share == pytest.approx(float(np.stack(after.maps).sum()), abs=1e-6)


def test_marks_are_left_out_of_the_maps():
    values = np.array([9, 0, 1, 9, 2, 3, 9, 4, 9, 9, 9, 5, 9, 9.0])
    maps = deal(values, [[(2, 2), (1, 1)], [(1, 1)]], Marks(**ALL))
    assert [own.tolist() for own in maps] == [[[0, 1], [2, 3]], [[4]], [[5]]]
    with pytest.raises(NotPossible, match="14 tokens and its views have 6"):
        deal(values, [[(2, 2), (1, 1)], [(1, 1)]])
